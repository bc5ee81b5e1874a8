import { constants } from "node:os";
import * as z from "zod";
import { JobError } from "../../engine/engine.ts";
import { ToolError, UsageError } from "../cli/failure.ts";
import { print, say } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { describeImage } from "./image.ts";
import { flag, help, name } from "./options.ts";

const { EINVAL } = constants.errno;

const coalescedSchema = z.object({ sectors: z.int().nonnegative() });

/** `vhd-util coalesce`. */
export const coalesce = suiteCommand("vhd-util", {
  name: "coalesce",
  summary: "Merges an image into its parent; vhd-coalesce can do more.",
  usage: "options: <-n name> [-s sparse] [-p progress] [-h help]",
  helpStatus: EINVAL,
  options: {
    name: { ...name, description: "the child" },
    sparse: flag("s", "don't copy zeros"),
    progress: flag("p", "print how far it is, on standard output"),
    h: help,
  },
  manual: { examples: [{ text: "Merge a snapshot into its parent", command: "vhd-util coalesce -n child.vhd" }] },
  async run({ options, operands }, jobs) {
    const { name: path } = options;
    if (path === undefined || operands.length > 0) throw new UsageError("-n is missing");
    const failed = (errno: number, text?: string): number => {
      if (text !== undefined) print(text);
      print(`error coalescing: -${errno}`);
      return errno;
    };
    const image = await describeImage(jobs, path, { parent: true }).catch((error: unknown) => {
      if (!(error instanceof JobError)) throw error;
      say(`vhd-util coalesce: ${error.message}`);
      return error.errno;
    });
    if (typeof image === "number") return failed(image, `error opening ${path}: -${image}`);
    if (image.problem !== null) {
      say(`vhd-util coalesce: ${image.problem.message}`);
      return failed(image.problem.errno, `error opening ${path}: -${image.problem.errno}`);
    }
    if (image.type !== "differencing") {
      return failed(EINVAL, "coalescing of non-differencing disks is not supported");
    }
    if (image.parentProblem !== null) {
      say(`vhd-util coalesce: ${image.parentProblem.message}`);
      return failed(image.parentProblem.errno, `error finding ${path} parent: -${image.parentProblem.errno}`);
    }
    if (options.sparse) print("opening for sparse writes");
    const onProgress = options.progress
      ? ({ phase, done, total }: { phase: string; done: number; total: number }) => {
          if (phase === "merging" && total > 0) percent((100 * Math.min(done, total)) / total);
        }
      : undefined;
    try {
      const job = { job: "coalesce", path, sparse: options.sparse === true };
      const { sectors } = await jobs.run(job, coalescedSchema, onProgress);
      if (options.progress) process.stdout.write("\r100.00%\n");
      // No line end, as the original has none.
      process.stdout.write(`Coalesced ${sectors} sectors`);
      return 0;
    } catch (error) {
      if (error instanceof JobError) failed(error.errno);
      else if (error instanceof ToolError) failed(constants.errno.ECANCELED);
      throw error;
    }
  },
});

function percent(value: number): void {
  process.stdout.write(`\r${value.toFixed(2).padStart(6)}%`);
}
