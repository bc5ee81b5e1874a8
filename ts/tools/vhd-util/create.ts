import { randomUUID } from "node:crypto";
import { constants } from "node:os";
import * as z from "zod";
import { UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import type { Jobs } from "../cli/jobs.ts";
import { print } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { flag, help, name, valued } from "./options.ts";

const { EINVAL } = constants.errno;
const MIB = 2 ** 20;
/** The original makes whole blocks. */
const BLOCK = 2 * MIB;

/** What to make. Sizes are MiB. */
export interface NewImage {
  readonly path: string;
  readonly size: number;
  readonly maxSize: number | undefined;
  readonly fixed: boolean;
}

/** What a new image is called, and when it was made. */
export function identity(): { uuid: string; now: number } {
  return { uuid: randomUUID(), now: Math.floor(Date.now() / 1000) };
}

function wholeBlocks(mebibytes: number): number {
  return Math.ceil((mebibytes * MIB) / BLOCK) * BLOCK;
}

/** Makes an image as `vhd-util create` does. Yields the exit status. */
export async function createImage(jobs: Jobs, { path, size, maxSize, fixed }: NewImage): Promise<number> {
  if (maxSize !== undefined && maxSize < size) {
    print("Error: <-S size> must be greater than <-s size>");
    return EINVAL;
  }
  const growth = maxSize === undefined || fixed ? {} : { maxSize: wholeBlocks(maxSize) };
  const type = fixed ? "fixed" : "dynamic";
  await jobs.run({ job: "create", path, type, size: wholeBlocks(size), ...growth, ...identity() }, z.null());
  return 0;
}

/** `vhd-util create`. */
export const create = suiteCommand("vhd-util", {
  name: "create",
  summary: "Makes a new, empty image.",
  usage:
    "options: <-n name> <-s size (MB)> [-r reserve] [-h help] " +
    "[<-S size (MB) for metadata preallocation (see vhd-util resize)>]",
  helpStatus: EINVAL,
  options: {
    name: { ...name, description: "the new image: a file that isn't there yet, or a block device" },
    size: { ...valued("s", "MiB", "virtual size"), long: "size" },
    maxSize: {
      ...valued("S", "MiB", "size up to which the image can grow without its metadata being moved"),
      long: "max-size",
    },
    fixed: { ...flag("r", "a fixed disk: all of its space is reserved"), long: "fixed" },
    h: help,
  },
  manual: {
    examples: [
      { text: "A dynamic disk of 20 GiB", command: "vhd-util create -n disk.vhd -s 20480" },
      {
        text: "One that can be made as large as 2 TiB while it is in use",
        command: "vhd-util create -n disk.vhd -s 20480 -S 2088960",
      },
    ],
  },
  async run({ options, operands }, jobs) {
    const { name: path, size } = options;
    if (path === undefined || size === undefined || operands.length > 0) throw new UsageError("-n and -s are needed");
    const maxSize = options.maxSize === undefined ? 0 : parseNumber(options.maxSize, "-S");
    return await createImage(jobs, {
      path,
      size: parseNumber(size, "-s"),
      maxSize: maxSize === 0 ? undefined : maxSize,
      fixed: options.fixed === true,
    });
  },
});
