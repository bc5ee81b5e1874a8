/**
 * This folder holds the host's side of the engine: loading the WebAssembly module, views of its records, and its jobs.
 * It runs in Node, in workers and in browsers, so nothing here but `load-node.ts` and `built.ts` may use Node's modules,
 * and nothing at all opens a disk or a socket.
 */

import * as z from "zod/mini";
import type * as wasm from "../../build/wasm/vhd_wasm.js";
import { type Layout, Records } from "./records.ts";

/** The loaded WebAssembly module: what `load-node.ts` and `load-browser.ts` yield. */
export interface EngineModule {
  readonly Engine: typeof wasm.Engine;
  readonly memory: WebAssembly.Memory;
}

/** What the engine has to know of the file of a disk to open it. */
export interface OpenSpec {
  readonly driver: "vhd" | "aio";
  /** The name that errors give. */
  readonly path: string;
  /** The host's number of the file. */
  readonly file: number;
  /** Bytes. */
  readonly size: number;
  readonly blockDevice: boolean;
  readonly readOnly: boolean;
  /** Its path without symbolic links, if it is known: names of parents are relative to the folder there. */
  readonly realPath?: string;
  /** When it was modified last, Unix time in seconds. */
  readonly modified?: number;
}

const areaSchema = z.object({ offset: z.int().check(z.nonnegative()), capacity: z.int().check(z.positive()) });

const layoutSchema = z.object({
  operations: areaSchema,
  completions: areaSchema,
  tdRequests: areaSchema,
  finished: areaSchema,
  requests: areaSchema,
  responses: areaSchema,
  staging: z.object({ offset: z.int().check(z.nonnegative()), length: z.int().check(z.positive()) }),
});

/** An opened disk, as the open job describes it. */
export const openedDiskSchema = z.object({
  sectors: z.int().check(z.nonnegative()),
  sizeBytes: z.int().check(z.nonnegative()),
  /** `fixed`, `dynamic`, `differencing` or `raw`. */
  type: z.string(),
  /** Bytes; 0 for disks without blocks. */
  blockSize: z.int().check(z.nonnegative()),
  uuid: z.string(),
  /** Images in the chain, itself included. */
  depth: z.int().check(z.positive()),
  /** What was odd about the file but no reason to refuse it. */
  warnings: z.array(z.string()),
});

/** An opened disk, as the open job describes it. */
export type OpenedDisk = z.infer<typeof openedDiskSchema>;

const accessSchema = z.enum(["inspect", "read", "parent", "merge", "write", "create"]);

/** What a job will do with a file; `crates/vhd/src/wants.rs` says what each means. */
export type Access = z.infer<typeof accessSchema>;

const fileSchema = z.int().check(z.nonnegative());

const wantSchema = z.union([
  z.object({ open: z.object({ path: z.string(), driver: z.enum(["vhd", "aio"]), access: accessSchema }) }),
  z.object({ close: z.object({ file: fileSchema }) }),
  z.object({ remove: z.object({ path: z.string() }) }),
  z.object({ freeSpace: z.object({ file: fileSchema }) }),
]);

/** What a job wants of its host; `crates/vhd/src/wants.rs` says what each means. */
export type Want = z.infer<typeof wantSchema>;

/** A file that was opened for a want. */
export type OpenedFile = Omit<OpenSpec, "driver" | "path" | "readOnly">;

/** The answer to a want: what it yields, or a positive errno value. */
export type Answer =
  | { readonly opened: OpenedFile }
  | { readonly done: Readonly<Record<never, never>> }
  | { readonly freeSpace: number }
  | { readonly errno: number };

const progressSchema = z.object({
  phase: z.string(),
  done: z.number().check(z.nonnegative()),
  total: z.number().check(z.nonnegative()),
});

/** How far a job is: what it is at, how much of that is done, and how much it is in all (0: not known). */
export type Progress = z.infer<typeof progressSchema>;

/** A job and its parameters, as `JobSpec` in `crates/vhd/src/jobs/mod.rs` has them. */
export type JobDescription = { readonly job: string } & Readonly<Record<string, unknown>>;

const failedJobSchema = z.object({
  error: z.object({
    message: z.string(),
    file: z.nullish(z.string()),
    structure: z.nullish(z.string()),
    // A number from a corrupt file need not be a safe integer.
    offset: z.nullish(z.number()),
    found: z.nullish(z.string()),
    expected: z.nullish(z.string()),
    errno: z.int(),
  }),
});

/** A failed job. The message is complete: it names file, structure, offset, what was found and what was expected. */
export class JobError extends Error {
  override readonly name = "JobError";
  /** The positive errno value that a program reports for it. */
  readonly errno: number;

  constructor(failure: z.infer<typeof failedJobSchema>["error"]) {
    super(failure.message);
    this.errno = failure.errno;
  }
}

/** States of the job that was started last. */
export const jobState = { none: 0, running: 1, done: 2, failed: 3 } as const;

/** The engine of one virtual disk. */
export class Engine {
  /** The memory in which its batches travel. */
  readonly records: Records;
  readonly #engine: wasm.Engine;

  /** An engine with no disk, which will keep at most `bitmapCacheBytes` bytes of sector bitmaps. */
  constructor(module: EngineModule, bitmapCacheBytes: number) {
    this.#engine = new module.Engine(bitmapCacheBytes);
    const layout: Layout = layoutSchema.parse(JSON.parse(this.#engine.layout()));
    this.records = new Records(module.memory, layout);
  }

  /** Starts the job that opens a disk. */
  open(spec: OpenSpec): void {
    this.#engine.open(JSON.stringify(spec));
    this.records.refresh();
  }

  /** Starts the job that waits for the requests in flight, makes everything durable and writes the footer. */
  close(): void {
    this.#engine.close();
    this.records.refresh();
  }

  /** Starts the job that makes the open disk `sizeBytes` large while it is in use. */
  grow(sizeBytes: number): void {
    this.#engine.grow(sizeBytes);
    this.records.refresh();
  }

  /** Asks for dirty metadata to be written though nobody waits for it; for when the host is idle. */
  syncMetadata(): void {
    this.#engine.sync_metadata();
  }

  /** Whether the job that was started last still runs; it moves on with each {@link step}. */
  get jobRunning(): boolean {
    return this.#engine.job() === jobState.running;
  }

  /** Starts a job. */
  start(job: JobDescription): void {
    this.#engine.start(JSON.stringify(job));
    this.records.refresh();
  }

  /** How far the job is that was started last. */
  progress(): Progress {
    return progressSchema.parse(JSON.parse(this.#engine.progress()));
  }

  /** Asks the job to stop as soon as it safely can; it fails with `ECANCELED` then. */
  cancel(): void {
    this.#engine.cancel();
  }

  /** What the running job wants of the host, if anything. Each want is told once, and answered by {@link provide}. */
  want(): Want | null {
    return z.nullable(wantSchema).parse(JSON.parse(this.#engine.want()));
  }

  /** Answers the last want. */
  provide(answer: Answer): void {
    this.#engine.provide(JSON.stringify(answer));
    this.records.refresh();
  }

  /**
   * What the open job, which is over, yielded.
   * @throws JobError when it failed.
   */
  openedDisk(): OpenedDisk {
    return openedDiskSchema.parse(this.jobResult());
  }

  /**
   * Checks the close job, which is over.
   * @throws JobError when it failed.
   */
  checkClosed(): void {
    this.jobResult();
  }

  /**
   * Takes in records from the completions and td requests areas, and moves everything on.
   * @returns operations in the operations area | finished records in the finished area << 15
   */
  step(completions: number, tdRequests: number): number {
    const counts = this.#engine.step(completions, tdRequests);
    this.records.refresh();
    return counts;
  }

  /** Whether more waits than fitted into the areas: step again before waiting for anything. */
  get pending(): boolean {
    return this.#engine.pending();
  }

  /**
   * What the job that was started last yielded, once it is over.
   * @throws JobError when it failed.
   */
  jobResult(): unknown {
    const result: unknown = JSON.parse(this.#engine.job_result());
    if (this.#engine.job() === jobState.failed) {
      throw new JobError(failedJobSchema.parse(result).error);
    }
    return result;
  }
}
