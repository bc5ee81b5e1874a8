import { setImmediate } from "node:timers/promises";
import { Engine, type EngineModule, type JobDescription, JobError, type Progress } from "../engine/engine.ts";
import { errnoOf } from "../tapdisk/errors.ts";
import type { PortModule } from "../tapdisk/port.ts";
import { HostFiles } from "./files.ts";

const COUNT_MASK = 0x7fff;
/** Between two looks at signals, timers and the job's progress. */
const INTERVAL_MS = 50;

/** What a runner may be told. */
export interface JobRunnerOptions {
  /** Read and write around the page cache. */
  readonly direct?: boolean;
  /** Memory for sector bitmaps. */
  readonly bitmapCacheBytes?: number;
}

/** Runs jobs of the engine on files, one after another, with a port of its own. To be closed by {@link close}. */
export class JobRunner {
  readonly #port: InstanceType<PortModule["Port"]>;
  readonly #engine: Engine;
  readonly #files: HostFiles;
  #operations = 0;

  constructor(engineModule: EngineModule, PortClass: PortModule["Port"], options: JobRunnerOptions = {}) {
    this.#port = new PortClass({ backend: "auto" });
    this.#engine = new Engine(engineModule, options.bitmapCacheBytes ?? 64 << 20);
    this.#files = new HostFiles(this.#port, options.direct ?? false);
    this.#port.layout(this.#engine.records.layout);
  }

  /**
   * Runs a job to its end and closes the files that it opened. Signals are handled and timers run meanwhile; `onProgress`
   * is called some times a second.
   * @returns what the job yields, to be parsed by the caller
   * @throws JobError when it fails; `ECANCELED` after {@link cancel}. When a file was why, its cause tells more.
   */
  async run(job: JobDescription, onProgress?: (progress: Progress) => void): Promise<unknown> {
    const engine = this.#engine;
    engine.start(job);
    this.#turn(0);
    let next = performance.now() + INTERVAL_MS;
    try {
      while (engine.jobRunning) {
        const want = engine.want();
        if (want === null) {
          this.#turn(INTERVAL_MS);
        } else {
          engine.provide(this.#files.fulfil(want));
          this.#turn(0);
        }
        if (performance.now() >= next) {
          onProgress?.(engine.progress());
          await setImmediate();
          next = performance.now() + INTERVAL_MS;
        }
      }
      onProgress?.(engine.progress());
      return engine.jobResult();
    } catch (error) {
      const cause = this.#files.failure;
      if (error instanceof JobError && cause !== undefined && errnoOf(cause) === error.errno) error.cause = cause;
      throw error;
    } finally {
      this.#files.closeAll();
    }
  }

  /** Asks the running job to stop as soon as it safely can. */
  cancel(): void {
    this.#engine.cancel();
  }

  /** Gives everything back that it holds. */
  close(): void {
    this.#port.close();
  }

  /** Submits operations, waits for completions but not longer than `limit` milliseconds, and lets the job go on. */
  #turn(limit: number): void {
    // Other engines share the memory, and may have made it grow.
    this.#engine.records.refresh();
    const wait = this.#engine.pending ? 0 : limit;
    const outcome = this.#port.turn(this.#engine.records.bytes, this.#operations, 0, wait);
    this.#operations = this.#engine.step(outcome & COUNT_MASK, 0) & COUNT_MASK;
  }
}
