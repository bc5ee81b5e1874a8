import { constants } from "node:os";
import * as z from "zod";
import { UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import { suiteCommand } from "../cli/suite.ts";
import { announcing } from "./failing.ts";
import { describeImage } from "./image.ts";
import { flag, help, name, valued } from "./options.ts";

const { EINVAL } = constants.errno;

/** `vhd-util modify`. */
export const modify = suiteCommand("vhd-util", {
  name: "modify",
  summary: "Changes an image's parent or its size on the disk, or drops its data: for those who know what they do.",
  usage:
    "*** Dangerous operations, use with care ***\n" +
    "options: <-n name> [-p NEW_PARENT set parent [-m raw]] [-s NEW_SIZE set size] [-z zero (kill data)] [-h help]",
  helpStatus: EINVAL,
  options: {
    name,
    parent: valued("p", "file", "the new parent: through it the disk must read as through the old one", "file"),
    raw: flag("m", "that is a raw image"),
    size: valued("s", "bytes", "physical size: the footer moves to its end"),
    dropData: flag("z", "drop all data of this image"),
    h: help,
  },
  manual: {
    examples: [
      {
        text: "Let a child follow its parent, which was moved",
        command: "vhd-util modify -n child.vhd -p /new/base.vhd",
      },
    ],
  },
  async run({ options, operands }, jobs) {
    const { name: path, parent, size } = options;
    if (path === undefined || operands.length > 0) throw new UsageError("-n is missing");
    const physicalSize = size === undefined ? undefined : parseNumber(size, "-s");
    await announcing(
      (errno) => `error opening ${path}: ${errno}`,
      () => describeImage(jobs, path, {}),
    );
    const change = (what: object, line: (errno: string) => string) =>
      announcing(line, () => jobs.run({ job: "modify", path, ...what }, z.null()));
    if (options.dropData) await change({ dropData: true }, (errno) => `failed to zero VHD: ${errno}`);
    if (physicalSize !== undefined) {
      await change({ physicalSize }, (errno) => `failed to set physical size to ${physicalSize}: ${errno}`);
    }
    if (parent !== undefined) {
      await change(
        { parent: { path: parent, driver: options.raw ? "aio" : "vhd" } },
        (errno) => `failed to set parent to '${parent}': ${errno}`,
      );
    }
    return 0;
  },
});
