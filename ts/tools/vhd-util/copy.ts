import { rmSync } from "node:fs";
import { constants } from "node:os";
import * as z from "zod";
import { JobError } from "../../engine/engine.ts";
import { ToolError, UsageError } from "../cli/failure.ts";
import type { Jobs } from "../cli/jobs.ts";
import { print, say } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { identity } from "./create.ts";
import { describeImage } from "./image.ts";
import { flag, help, name, valued } from "./options.ts";

const { EEXIST, EINVAL, EOPNOTSUPP } = constants.errno;

/** A disk to be made of what a chain has. */
export interface Target {
  readonly path: string;
  readonly type: "dynamic" | "fixed";
  /** Bytes. */
  readonly size: number;
}

/**
 * Makes a new VHD and copies all that a chain reads as into it, but no zeros. What fails leaves nothing behind.
 * @throws JobError when something goes wrong
 */
export async function copyChain(jobs: Jobs, path: string, target: Target): Promise<void> {
  await jobs.run({ job: "create", ...target, ...identity() }, z.null());
  try {
    const output = { path: target.path, driver: "vhd" };
    await jobs.run({ job: "coalesce", path, output, sparse: true }, z.looseObject({}));
  } catch (error) {
    rmSync(target.path, { force: true });
    throw error;
  }
}

/** `vhd-util copy`. */
export const copy = suiteCommand("vhd-util", {
  name: "copy",
  summary: "Makes one image without a parent of all that an image reads as.",
  usage: "options: -n <name> -N <new VHD name> [-k <keyfile> | -E (pass encryption key on stdin)] [-h help] ",
  helpStatus: EINVAL,
  options: {
    name,
    target: { ...valued("N", "file", "the new image, which must not be there yet", "file"), long: "to" },
    key: valued("k", "file", "encrypt: refused", "file"),
    keyFromInput: flag("E", "encrypt: refused"),
    h: help,
  },
  manual: { examples: [{ text: "Flatten a chain", command: "vhd-util copy -n child.vhd -N whole.vhd" }] },
  async run({ options, operands }, jobs) {
    const { name: path, target } = options;
    if (options.key !== undefined || options.keyFromInput) {
      throw new ToolError("encryption is not supported: nothing was copied", EOPNOTSUPP);
    }
    if (path === undefined || target === undefined || operands.length > 0) {
      say("Must supply both existing and new VHD names");
      throw new UsageError("-n and -N are needed");
    }
    const image = await describeImage(jobs, path, {}).catch((error: unknown) => {
      if (error instanceof JobError) print(`error opening ${path}: -${error.errno}`);
      throw error;
    });
    if (image.problem !== null) {
      print(`error opening ${path}: -${image.problem.errno}`);
      throw new ToolError(image.problem.message, image.problem.errno);
    }
    try {
      const type = image.type === "fixed" ? "fixed" : "dynamic";
      await copyChain(jobs, path, { path: target, type, size: Number(image.size) });
    } catch (error) {
      if (!(error instanceof JobError && error.errno === EEXIST)) throw error;
      print(`VHD file ${target} already exists, chose a different name`);
      return EINVAL;
    }
    return 0;
  },
});
