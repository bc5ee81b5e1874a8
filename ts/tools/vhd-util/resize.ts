import { constants } from "node:os";
import * as z from "zod";
import { ToolError, UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import { print } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { announcing } from "./failing.ts";
import { describeImage } from "./image.ts";
import { flag, help, name, valued } from "./options.ts";

const { EINVAL, ENOSYS } = constants.errno;
const MIB = 2 ** 20;
const BLOCK = 2 * MIB;

/** `vhd-util resize`. */
export const resize = suiteCommand("vhd-util", {
  name: "resize",
  summary: "Makes a disk larger or smaller.",
  usage:
    "options: <-n name> <-s size (in MB)> (<-j journal>|<-f fast>) [-h help]\n\n" +
    "The resize operation can only be performed offline and must be journaled because resizing the metadata might require " +
    "moving data blocks. However, if a VHD was created with -S <msize> option (during vhd-util create/snapshot), which " +
    "preallocates the metadata for growing the VHD up to size <msize>, then resizing such a VHD up to <msize> can be " +
    "performed online without journaling (-f option).",
  helpStatus: EINVAL,
  options: {
    name,
    size: valued("s", "MiB", "the new virtual size"),
    journal: valued("j", "file", "taken and not needed: whatever interrupts it, resizing can be started again", "file"),
    fast: flag("f", "fail if anything had to be moved"),
    shrink: { long: "shrink", description: "let the disk become smaller: what is behind its new end is lost" },
    h: help,
  },
  manual: {
    examples: [{ text: "Grow a disk to 40 GiB", command: "vhd-util resize -n disk.vhd -s 40960 -j disk.journal" }],
  },
  async run({ options, operands }, jobs) {
    const { name: path, size, journal, fast } = options;
    const ways = (journal === undefined ? 0 : 1) + (fast ? 1 : 0);
    if (path === undefined || size === undefined || ways !== 1 || operands.length > 0) {
      throw new UsageError("-n, -s and one of -j and -f are needed");
    }
    const { footer, size: current } = await announcing(
      (errno) => `error opening ${path}: ${errno}`,
      () => describeImage(jobs, path, {}),
    );
    if (footer !== null && footer.creatorApplication !== "tap") {
      print(`${path} not created by xen; resize not supported`);
      return EINVAL;
    }
    const bytes = Math.ceil((parseNumber(size, "-s") * MIB) / BLOCK) * BLOCK;
    if (bytes < current && !options.shrink) {
      // The original can't; who calls it so would be surprised to lose data.
      print(`dynamic shrink not fully implemented\nresize failed: -${ENOSYS}`);
      throw new ToolError("the disk would become smaller: --shrink lets it", ENOSYS);
    }
    const work = () => jobs.run({ job: "resize", path, size: bytes, fast: fast === true }, z.null());
    // The original says nothing of a fast one that fails.
    if (fast) await work();
    else await announcing((errno) => `resize failed: ${errno}`, work);
    return 0;
  },
});
