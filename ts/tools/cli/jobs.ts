import type * as z from "zod";
import { type JobDescription, JobError, type Progress } from "../../engine/engine.ts";
import { loadEngineModule } from "../../engine/load-node.ts";
import { DiskIo, type DiskSpec } from "../../host/disk-io.ts";
import { JobRunner, type JobRunnerOptions } from "../../host/job-runner.ts";
import { portModule } from "../../tapdisk/port.ts";
import { ToolError } from "./failure.ts";
import { interrupted, interruptible } from "./interrupt.ts";
import { type ProgressStyle, ProgressView } from "./progress.ts";

/** Runs jobs of the engine for a command. */
export interface Jobs {
  /**
   * Runs a job to its end and parses what it yields. A signal cancels it, where it safely can be. Its progress is shown, or
   * given to `onProgress`.
   * @throws JobError when it fails
   */
  run<T extends z.ZodType>(
    job: JobDescription,
    schema: T,
    onProgress?: (progress: Progress) => void,
  ): Promise<z.infer<T>>;
  /**
   * Opens a disk for its data and closes it after `work`, in which signals are heeded between chunks.
   * @throws JobError when it can't be opened or closed; what `work` throws
   */
  withDisk<T>(disk: DiskSpec, work: (io: DiskIo) => Promise<T>): Promise<T>;
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
  const engine = loadEngineModule();
  const { Port } = portModule();
  const runner = new JobRunner(engine, Port, options);
  const view = new ProgressView(options.progress);
  const jobs: Jobs = {
    async run(job, schema, onProgress = (progress) => view.update(progress)) {
      const stopped = interrupted();
      if (stopped !== undefined) throw new ToolError("interrupted", stopped);
      try {
        const result = await interruptible(
          () => runner.cancel(),
          () => runner.run(job, onProgress),
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
    async withDisk(disk, work) {
      const io = new DiskIo(engine, Port, disk);
      const outcome = await work(io).then(
        (value) => () => value,
        (error: unknown) => () => {
          throw error;
        },
      );
      // An earlier error says more than one in closing.
      try {
        io.close();
      } catch (error) {
        outcome();
        throw error;
      }
      return outcome();
    },
  };
  try {
    return await work(jobs);
  } finally {
    runner.close();
  }
}
