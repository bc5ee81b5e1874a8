import { closeSync, openSync, readSync } from "node:fs";
import { constants } from "node:os";
import * as z from "zod";
import { UsageError } from "../cli/failure.ts";
import { say } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { announcing } from "./failing.ts";
import { help, name, valued } from "./options.ts";

const { EINVAL } = constants.errno;
const SECTOR = 512;

/** `vhd-util revert`. */
export const revert = suiteCommand("vhd-util", {
  name: "revert",
  summary: "Undoes a resize of blktap's that was interrupted, with its journal.",
  usage: "options: <-n name> <-j journal> [-h help]",
  helpStatus: EINVAL,
  options: {
    name,
    journal: { ...valued("j", "file", "the journal, which is removed then", "file"), long: "journal" },
    h: help,
  },
  manual: {
    details: [
      "Resizing by this program needs no journal: one that has nothing in it has nothing to undo, and is left where it is.",
    ],
    examples: [{ text: "Go back to before the resize", command: "vhd-util revert -n disk.vhd -j disk.journal" }],
  },
  async run({ options, operands }, jobs) {
    const { name: path, journal } = options;
    if (path === undefined || journal === undefined || operands.length > 0)
      throw new UsageError("-n and -j are needed");
    const empty = await announcing(
      (errno) => `opening journal failed: ${errno}`,
      async () => isEmpty(journal),
    );
    if (empty) {
      say(`vhd-util revert: ${journal} is empty: there is nothing to undo`);
      return 0;
    }
    await announcing(
      (errno) => `reverting journal failed: ${errno}`,
      () => jobs.run({ job: "revert", path, journal }, z.null()),
    );
    return 0;
  },
});

/** Whether a journal was made for a resize that never wrote to it. */
function isEmpty(path: string): boolean {
  const file = openSync(path, "r");
  try {
    const start = Buffer.alloc(SECTOR);
    readSync(file, start, 0, SECTOR, 0);
    return start.every((byte) => byte === 0);
  } finally {
    closeSync(file);
  }
}
