import { SingleBar } from "cli-progress";
import type { Progress } from "../../engine/engine.ts";
import { formatBytes, printJson, type Stream, say } from "./output.ts";

/** How progress is shown: a bar for people, lines for logs, events for programs, or not at all. */
export type ProgressStyle = "bar" | "lines" | "json" | "none";

/** Between two lines, or events. */
const LINE_INTERVAL_MS = 10_000;
const EVENT_INTERVAL_MS = 500;
/** What is over sooner shows nothing. */
export const PATIENCE_MS = 300;
/** Over how long the rate is taken. */
const RATE_WINDOW_MS = 5_000;

/** What all bars look like and do. */
export const barLook = {
  barCompleteChar: "=",
  barIncompleteChar: " ",
  clearOnComplete: true,
  hideCursor: null,
  linewrap: null,
  gracefulExit: false,
};

/** The style that fits where messages go: a bar on a terminal, lines elsewhere. */
export function styleFor(json: boolean, stream: Stream = process.stderr): ProgressStyle {
  if (json) return "json";
  return stream.isTTY ? "bar" : "lines";
}

/** What is known of a job's progress at a moment. */
export interface Estimate extends Progress {
  /** Units a second. */
  readonly rate: number;
  /** Seconds, if they can be told. */
  readonly secondsLeft: number | undefined;
}

/** Knows how fast something goes. */
export class Pace {
  #phase = "";
  #samples: { readonly at: number; readonly done: number }[] = [];

  /** Takes in how far it is at `now`, milliseconds of any clock that only goes forward. */
  estimate(progress: Progress, now: number): Estimate {
    if (progress.phase !== this.#phase) {
      this.#phase = progress.phase;
      this.#samples = [];
    }
    this.#samples.push({ at: now, done: progress.done });
    while (this.#samples.length > 2 && (this.#samples[1]?.at ?? now) < now - RATE_WINDOW_MS) this.#samples.shift();
    const first = this.#samples[0];
    const seconds = first === undefined ? 0 : (now - first.at) / 1000;
    const rate = first === undefined || seconds === 0 ? 0 : (progress.done - first.done) / seconds;
    const known = rate > 0 && progress.total > 0;
    return { ...progress, rate, secondsLeft: known ? Math.max(0, progress.total - progress.done) / rate : undefined };
  }
}

/** An amount in the unit of a phase: bytes, unless its name says something else. */
function amount(phase: string, value: number): string {
  const unit = /\b(blocks|files|images|sectors)\b/.exec(phase)?.[0];
  return unit === undefined ? formatBytes(value) : `${Math.round(value)} ${unit}`;
}

/** How much is done, how fast it goes and how long it will take, in words. */
export function describe({ phase, done, total, rate, secondsLeft }: Estimate): string {
  const parts = [total > 0 ? `${amount(phase, done)} of ${amount(phase, total)}` : amount(phase, done)];
  if (rate > 0) parts.push(`${amount(phase, rate)}/s`);
  if (secondsLeft !== undefined) parts.push(`${duration(secondsLeft)} left`);
  return parts.join(", ");
}

/** Seconds in words. */
export function duration(seconds: number): string {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return `${minutes} min ${whole % 60} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function percent({ done, total }: Progress): number {
  return total > 0 ? Math.floor((100 * Math.min(done, total)) / total) : 0;
}

/** Shows the progress of one command, which may run several jobs one after another. */
export class ProgressView {
  readonly #style: ProgressStyle;
  readonly #pace = new Pace();
  readonly #began = performance.now();
  #shown = Number.NEGATIVE_INFINITY;
  #phase = "";
  #bar: SingleBar | undefined;

  constructor(style: ProgressStyle) {
    this.#style = style;
  }

  /** Takes in how far a job is. */
  update(progress: Progress): void {
    if (this.#style === "none" || progress.phase === "") return;
    const now = performance.now();
    const estimate = this.#pace.estimate(progress, now);
    if (this.#style === "bar") {
      if (now - this.#began >= PATIENCE_MS) this.#draw(estimate);
      return;
    }
    const interval = this.#style === "json" ? EVENT_INTERVAL_MS : LINE_INTERVAL_MS;
    if (now - Math.max(this.#shown, this.#began) < interval) return;
    this.#shown = now;
    if (this.#style === "json") {
      const { phase, done, total, rate, secondsLeft } = estimate;
      printJson({ event: "progress", phase, done, total, rate: Math.round(rate), secondsLeft: secondsLeft ?? null });
    } else {
      const share = progress.total > 0 ? `${percent(progress)} %, ` : "";
      say(`${progress.phase}: ${share}${describe(estimate)}`);
    }
  }

  /** Takes the bar off the terminal: something else will be written there. It comes back with the next update. */
  clear(): void {
    this.#bar?.stop();
    this.#bar = undefined;
  }

  #draw(estimate: Estimate): void {
    if (this.#phase !== estimate.phase) {
      this.clear();
      this.#phase = estimate.phase;
    }
    const payload = { text: describe(estimate) };
    const [total, done] = [Math.max(estimate.total, 1), Math.min(estimate.done, Math.max(estimate.total, 1))];
    if (this.#bar === undefined) {
      this.#bar = new SingleBar({
        format: `${estimate.phase} [{bar}] {percentage} %  {text}`,
        barsize: 24,
        ...barLook,
        stream: process.stderr,
      });
      this.#bar.start(total, done, payload);
    } else {
      this.#bar.setTotal(total);
      this.#bar.update(done, payload);
    }
  }
}
