/** A live table on a terminal: a line for each thread, and one for the whole. */

import { MultiBar, type SingleBar } from "cli-progress";
import type { Progress } from "../../engine/engine.ts";
import { printable } from "../cli/output.ts";
import { barLook, PATIENCE_MS } from "../cli/progress.ts";
import type { Watcher } from "./pool.ts";
import type { Result } from "./schema.ts";
import { verdict } from "./text.ts";

/** Letters of a path that are shown. */
const PATH_WIDTH = 40;

function shortened(path: string): string {
  return path.length <= PATH_WIDTH ? path.padEnd(PATH_WIDTH) : `…${path.slice(1 - PATH_WIDTH)}`;
}

/** The table, on standard error. */
export class LiveTable implements Watcher {
  readonly #began = performance.now();
  readonly #images: number;
  readonly #paths = new Map<number, string>();
  readonly #lines = new Map<number, SingleBar>();
  #table: MultiBar | undefined;
  #total: SingleBar | undefined;
  #done = 0;

  /** A table for so many images. */
  constructor(images: number) {
    this.#images = images;
  }

  started(worker: number, path: string): void {
    this.#paths.set(worker, printable(path));
    this.#draw(worker, { phase: "", done: 0, total: 0 });
  }

  progress(worker: number, progress: Progress): void {
    this.#draw(worker, progress);
  }

  finished(result: Result): void {
    this.#done++;
    this.#total?.update(this.#done, { path: `${this.#done} of ${this.#images} images`.padEnd(PATH_WIDTH), text: "" });
    if (result.outcome !== "clean") this.#table?.log(`${printable(result.path)}: ${verdict(result)}\n`);
  }

  /** Takes the table off the terminal. */
  close(): void {
    this.#table?.stop();
    this.#table = undefined;
  }

  #draw(worker: number, { phase, done, total }: Progress): void {
    if (performance.now() - this.#began < PATIENCE_MS) return;
    this.#table ??= new MultiBar({
      format: "{path} [{bar}] {percentage} % {text}",
      barsize: 20,
      ...barLook,
      stream: process.stderr,
    });
    if (this.#images > 1) {
      const path = `${this.#done} of ${this.#images} images`.padEnd(PATH_WIDTH);
      this.#total ??= this.#table.create(this.#images, this.#done, { path, text: "" });
    }
    const payload = { path: shortened(this.#paths.get(worker) ?? ""), text: phase };
    const line = this.#lines.get(worker) ?? this.#table.create(1, 0, payload);
    this.#lines.set(worker, line);
    line.setTotal(Math.max(total, 1));
    line.update(Math.min(done, Math.max(total, 1)), payload);
  }
}
