import type * as z from "zod";
import { type JobDescription, JobError } from "../../engine/engine.ts";
import { loadEngineModule } from "../../engine/load-node.ts";
import { JobRunner, type JobRunnerOptions } from "../../host/job-runner.ts";
import { portModule } from "../../tapdisk/port.ts";
import { ToolError } from "./failure.ts";
import { interrupted, interruptible } from "./interrupt.ts";
import { type ProgressStyle, ProgressView } from "./progress.ts";

/** Runs jobs of the engine for a command. */
export interface Jobs {
  /**
   * Runs a job to its end and parses what it yields. A signal cancels it, where it safely can be.
   * @throws JobError when it fails
   */
  run<T extends z.ZodType>(job: JobDescription, schema: T): Promise<z.infer<T>>;
}

/** What a command may choose. */
export interface JobsOptions extends JobRunnerOptions {
  readonly progress: ProgressStyle;
}

/**
 * Runs `work` with jobs, and gives everything back afterwards.
 * @throws what `work` throws; a ToolError with a signal's status when it was interrupted
 */
export async function withJobs<T>(options: JobsOptions, work: (jobs: Jobs) => Promise<T>): Promise<T> {
  const runner = new JobRunner(loadEngineModule(), portModule().Port, options);
  const view = new ProgressView(options.progress);
  const jobs: Jobs = {
    async run(job, schema) {
      const stopped = interrupted();
      if (stopped !== undefined) throw new ToolError("interrupted", stopped);
      try {
        const result = await interruptible(
          () => runner.cancel(),
          () => runner.run(job, (progress) => view.update(progress)),
        );
        return schema.parse(result);
      } catch (error) {
        const status = interrupted();
        if (status === undefined || !(error instanceof JobError)) throw error;
        throw new ToolError(`interrupted: ${error.message}`, status);
      } finally {
        view.clear();
      }
    },
  };
  try {
    return await work(jobs);
  } finally {
    runner.close();
  }
}
