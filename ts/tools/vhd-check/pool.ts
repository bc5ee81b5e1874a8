/** Worker threads that look at many images at once. */

import { Worker } from "node:worker_threads";
import type { Progress } from "../../engine/engine.ts";
import { newsSchema, type Order, type Request } from "./messages.ts";
import type { Result } from "./schema.ts";

/** Who is told what happens. */
export interface Watcher {
  /** A worker begins with an image. */
  started(worker: number, path: string): void;
  progress(worker: number, progress: Progress): void;
  finished(result: Result): void;
}

/** The file that worker threads run: the program itself, as sources or as a bundle. */
function entry(): URL {
  return new URL(import.meta.url.endsWith(".ts") ? "../vhd-check.ts" : import.meta.url, import.meta.url);
}

/** Looks at many images with a number of threads. */
export class Pool {
  readonly #workers: Worker[] = [];
  #cancelled = false;

  /**
   * Looks at all images. Results come in the order in which they are ready; those that a cancellation left out are missing.
   * @throws an error when a worker thread dies
   */
  async run(paths: readonly string[], request: Request, threads: number, watcher: Watcher): Promise<Result[]> {
    const waiting = [...paths];
    const results: Result[] = [];
    const serve = (index: number) =>
      new Promise<void>((resolve, reject) => {
        const worker = new Worker(entry());
        this.#workers.push(worker);
        const next = () => {
          const path = this.#cancelled ? undefined : waiting.shift();
          if (path === undefined) return resolve();
          watcher.started(index, path);
          worker.postMessage({ kind: "check", path, request } satisfies Order);
        };
        worker.on("message", (message) => {
          const news = newsSchema.parse(message);
          if (news.kind === "progress") return watcher.progress(index, news);
          results.push(news.result);
          watcher.finished(news.result);
          next();
        });
        worker.on("error", reject);
        worker.on("exit", (code) => reject(new Error(`a worker thread ended with ${code}`)));
        next();
      });
    try {
      await Promise.all(Array.from({ length: Math.min(threads, paths.length) }, (_, index) => serve(index)));
      return results;
    } finally {
      for (const worker of this.#workers) worker.removeAllListeners();
      await Promise.all(this.#workers.map((worker) => worker.terminate()));
    }
  }

  /** Asks for an end, as soon as it is safe. */
  cancel(): void {
    this.#cancelled = true;
    for (const worker of this.#workers) worker.postMessage({ kind: "cancel" } satisfies Order);
  }
}
