import { realpathSync } from "node:fs";
import { constants } from "node:os";
import * as z from "zod";
import { JobError } from "../../engine/engine.ts";
import { UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import type { Jobs } from "../cli/jobs.ts";
import { print } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { identity } from "./create.ts";
import { describeChain } from "./image.ts";
import { flag, help, name, valued } from "./options.ts";
import { chainDepth } from "./query.ts";

const { ENOSPC } = constants.errno;
const MIB = 2 ** 20;

/** A child to make. */
export interface NewChild {
  readonly path: string;
  readonly parent: string;
  readonly rawParent: boolean;
  readonly keepEmpty: boolean;
  /** MiB. */
  readonly maxSize: number | undefined;
  readonly depthLimit: number | undefined;
}

const snapshotSchema = z.object({ parent: z.string(), size: z.number(), depth: z.int() });

/** Makes a child as `vhd-util snapshot` does. Yields the exit status. */
export async function createChild(jobs: Jobs, child: NewChild): Promise<number> {
  const { path, rawParent, keepEmpty, maxSize, depthLimit } = child;
  const parent = { path: realpathSync(child.parent), driver: rawParent ? "aio" : "vhd" };
  const options = {
    ...(maxSize === undefined ? {} : { maxSize: maxSize * MIB }),
    ...(depthLimit === undefined || rawParent ? {} : { depthLimit }),
  };
  try {
    await jobs.run({ job: "snapshot", path, parent, keepEmpty, ...options, ...identity() }, snapshotSchema);
  } catch (error) {
    if (error instanceof JobError && error.errno === ENOSPC && depthLimit !== undefined) {
      // The file system may be full as well.
      const depth = chainDepth(await describeChain(jobs, parent.path, { parents: true }));
      if (depth !== undefined && depth >= depthLimit) {
        print(`snapshot depth exceeded: current depth: ${depth}, limit: ${depthLimit}`);
      }
    }
    throw error;
  }
  return 0;
}

/** `vhd-util snapshot`. */
export const snapshot = suiteCommand("vhd-util", {
  name: "snapshot",
  summary: "Makes a child of an image, in which the disk goes on.",
  usage:
    "options: <-n name> <-p parent name> [-l snapshot depth limit] [-m parent_is_raw] " +
    "[-S size (MB) for metadata preallocation (see vhd-util resize)] " +
    "[-e link to supplied parent name even if it's empty] [-h help]",
  options: {
    name: { ...name, description: "the new child: a file that isn't there yet, or a block device" },
    parent: { ...valued("p", "file", "its parent, which must not be written any more", "file"), long: "parent" },
    limit: valued("l", "N", "fail if the parent's chain has that many images already"),
    raw: flag("m", "the parent is a raw image"),
    maxSize: {
      ...valued("S", "MiB", "size up to which the child can grow without its metadata being moved"),
      long: "max-size",
    },
    keepEmpty: flag(
      "e",
      "the parent is this image though nothing was ever written to it, and not the parent of that one",
    ),
    h: help,
  },
  manual: {
    examples: [{ text: "Go on in a child of disk.vhd", command: "vhd-util snapshot -n child.vhd -p disk.vhd" }],
  },
  async run({ options, operands }, jobs) {
    const { name: path, parent } = options;
    if (path === undefined || parent === undefined || operands.length > 0) throw new UsageError("-n and -p are needed");
    const positive = (text: string | undefined, what: string) => {
      const value = text === undefined ? 0 : parseNumber(text, what);
      return value === 0 ? undefined : value;
    };
    return await createChild(jobs, {
      path,
      parent,
      rawParent: options.raw === true,
      keepEmpty: options.keepEmpty === true,
      maxSize: positive(options.maxSize, "-S"),
      depthLimit: positive(options.limit, "-l"),
    });
  },
});
