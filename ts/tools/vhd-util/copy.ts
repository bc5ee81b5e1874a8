import { constants } from "node:os";
import * as z from "zod";
import { JobError } from "../../engine/engine.ts";
import { ToolError, UsageError } from "../cli/failure.ts";
import { print, say } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { identity } from "./create.ts";
import { describeImage } from "./image.ts";
import { flag, help, name, valued } from "./options.ts";

const { EEXIST, EINVAL, EOPNOTSUPP } = constants.errno;

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
      const format = image.type === "fixed" ? "fixed" : "dynamic";
      await jobs.run({ job: "convert", path, driver: "vhd", target, format, ...identity() }, z.null());
    } catch (error) {
      if (!(error instanceof JobError && error.errno === EEXIST)) throw error;
      print(`VHD file ${target} already exists, chose a different name`);
      return EINVAL;
    }
    return 0;
  },
});
