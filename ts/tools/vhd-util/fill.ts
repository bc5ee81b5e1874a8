import { constants } from "node:os";
import * as z from "zod";
import { ToolError, UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import { print } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { announcing } from "./failing.ts";
import { describeImage } from "./image.ts";
import { flag, help, name, valued } from "./options.ts";

const { EINVAL } = constants.errno;
const SECTOR = 512;

/** `vhd-util fill`. */
export const fill = suiteCommand("vhd-util", {
  name: "fill",
  summary: "Allocates all blocks of an image, so that later writes need no new space.",
  usage:
    "options: <-n name> [-h help] [-b initialise the BAT and bitmaps, don't write to the data blocks (much faster)] " +
    "[-f start intialisation from this sector, only usable with -b] " +
    "[-t intialise up to this sector (inclusive), only usable with -b] [-B ignore the 2 TB limit, only usable with -b]",
  helpStatus: EINVAL,
  options: {
    name,
    blocks: flag("b", "allocate blocks only, without writing all of their data"),
    from: valued("f", "sector", "with -b: from the block of this sector on"),
    to: valued("t", "sector", "with -b: up to the block of this sector"),
    large: flag("B", "with -b: taken; there are no blocks behind 2 TiB in any file"),
    h: help,
  },
  manual: { examples: [{ text: "Reserve space", command: "vhd-util fill -b -n disk.vhd" }] },
  async run({ options, operands }, jobs) {
    const { name: path } = options;
    if (path === undefined || operands.length > 0) throw new UsageError("-n is missing");
    const onlyBlocks = options.blocks === true;
    if ((options.from !== undefined || options.to !== undefined) && !onlyBlocks) {
      print("-f/-t can only be used with -b");
      throw new UsageError("-b is missing");
    }
    if (options.large && !onlyBlocks) {
      print("-B can only be used with -b");
      throw new UsageError("-b is missing");
    }
    const from = options.from === undefined ? 0 : parseNumber(options.from, "-f");
    const to = options.to === undefined ? Number.MAX_SAFE_INTEGER : parseNumber(options.to, "-t");
    if (to < from) {
      print(`invalid sector range ${from}-${to}`);
      throw new UsageError("it ends before it begins");
    }
    const { problem, size } = await announcing(
      (errno) => `error opening ${path}: ${errno}`,
      () => describeImage(jobs, path, {}),
    );
    if (problem !== null) {
      print(`error opening ${path}: -${problem.errno}`);
      throw new ToolError(problem.message, problem.errno);
    }
    // The last sector is one that counts here.
    const range = onlyBlocks ? { from, to: Math.min(to + 1, Number(size / BigInt(SECTOR))) } : {};
    await jobs.run({ job: "fill", path, bitmapsOnly: onlyBlocks, ...range }, z.null());
    return 0;
  },
});
