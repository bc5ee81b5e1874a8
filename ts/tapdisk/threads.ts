/**
 * Starting worker threads for data planes. It takes as long as Node itself, so that a thread can be started before anybody
 * knows for which disk. Imports nothing that takes time to load.
 */

import { Worker } from "node:worker_threads";

/** A data plane makes next to no garbage; what V8 gives young objects by itself is for programs that do. */
const YOUNG_MIB = 2;

/** A thread that was started, and waits for its disk. */
export interface StartedThread {
  readonly worker: Worker;
  /** What it has to say first; rejects when it dies before. */
  readonly firstMessage: Promise<unknown>;
}

let ahead: StartedThread | undefined;

/** Starts a thread, from another entry only in tests. */
export function startThread(entry: URL = workerFile()): StartedThread {
  const worker = new Worker(entry, { resourceLimits: { maxYoungGenerationSizeMb: YOUNG_MIB } });
  const firstMessage = first(worker);
  // Whoever awaits it sees the error.
  firstMessage.catch(() => {});
  return { worker, firstMessage };
}

/** Starts a thread for whoever takes one first. */
export function startThreadAhead(): void {
  ahead ??= startThread();
}

/** A thread for a disk: the one that was started ahead, or a new one. */
export function takeThread(): StartedThread {
  const thread = ahead ?? startThread();
  ahead = undefined;
  return thread;
}

/** The worker's entry, from the sources as well as from a bundle. */
function workerFile(): URL {
  return new URL(import.meta.url.endsWith(".ts") ? "worker.ts" : "worker.cjs", import.meta.url);
}

function first(worker: Worker): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const settle = (outcome: () => void) => {
      worker.off("message", onMessage);
      worker.off("error", onError);
      worker.off("exit", onExit);
      outcome();
    };
    const onMessage = (message: unknown) => settle(() => resolve(message));
    const onError = (error: unknown) => settle(() => reject(error));
    const onExit = (code: number) => settle(() => reject(new Error(`the disk's thread ended with code ${code}`)));
    worker.on("message", onMessage);
    worker.on("error", onError);
    worker.on("exit", onExit);
  });
}
