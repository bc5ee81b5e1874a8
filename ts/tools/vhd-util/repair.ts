import { randomUUID } from "node:crypto";
import { constants } from "node:os";
import * as z from "zod";
import { UsageError } from "../cli/failure.ts";
import { suiteCommand } from "../cli/suite.ts";
import { announcing } from "./failing.ts";
import { flag, help, name } from "./options.ts";

const { EINVAL } = constants.errno;

/** `vhd-util repair`. */
export const repair = suiteCommand("vhd-util", {
  name: "repair",
  summary: "Puts footers, header and batmap in order after a crash; vhd-check can mend more.",
  usage: "options: <-n name> <-b use the back-up footer> [-h help]",
  helpStatus: EINVAL,
  options: {
    name,
    backup: flag("b", "believe the copy of the footer at the start, not the one at the end"),
    h: help,
  },
  manual: { examples: [{ text: "After a power cut", command: "vhd-util repair -n disk.vhd" }] },
  async run({ options, operands }, jobs) {
    const { name: path } = options;
    if (path === undefined || operands.length > 0) throw new UsageError("-n is missing");
    // Only an image that has no UUID gets this one.
    const job = { job: "repair", path, useBackup: options.backup === true, uuid: randomUUID() };
    await announcing(
      (errno) => `error opening ${path}: ${errno}`,
      () => jobs.run(job, z.null()),
    );
    return 0;
  },
});
