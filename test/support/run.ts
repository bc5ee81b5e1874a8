/**
 * What the whole-program tests share: this file has temporary directories and the running of other programs. Every
 * program gets a time limit, is ended by its own process, and is ended at the latest when its test is over.
 */

import { type ChildProcess, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";

/** A new directory for the running test, which is gone afterwards. */
export function temporaryDirectory(): string {
  const path = mkdtempSync(join(tmpdir(), "tapvhd-test-"));
  onTestFinished(() => rmSync(path, { recursive: true, force: true }));
  return path;
}

/** How a program ended. */
export interface Outcome {
  /** Exit status; a signal that ended it makes that negative, so that it never passes for a status. */
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** A program that runs, with what it has said so far. */
export class RunningProgram {
  readonly pid: number;
  readonly #child: ChildProcess;
  readonly #ended: Promise<Outcome>;
  readonly #name: string;
  #over = false;
  #stdout = "";
  #stderr = "";
  #onOutput: () => void = () => {};

  constructor(name: string, args: readonly string[], options: { input?: string; cwd?: string } = {}) {
    this.#name = `${name} ${args.join(" ")}`;
    this.#child = spawn(name, args, { stdio: ["pipe", "pipe", "pipe"], cwd: options.cwd });
    const { stdin, stdout, stderr } = this.#child;
    stdin?.on("error", () => {}); // a program need not read what it is given
    stdin?.end(options.input ?? "");
    stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.#stdout += text;
      this.#onOutput();
    });
    stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr += text;
    });
    this.#ended = new Promise((resolve, reject) => {
      this.#child.on("error", reject);
      this.#child.on("close", (code, signal) => {
        this.#over = true;
        this.#onOutput();
        resolve({ status: code ?? (signal === null ? -1 : -2), stdout: this.#stdout, stderr: this.#stderr });
      });
    });
    this.#ended.catch(() => {}); // whoever waits for the end gets it
    this.pid = this.#child.pid ?? -1;
    onTestFinished(() => {
      this.signal("SIGKILL");
    });
  }

  get stdout(): string {
    return this.#stdout;
  }

  get stderr(): string {
    return this.#stderr;
  }

  /** Sends a signal, if it still runs. */
  signal(signal: NodeJS.Signals): void {
    if (!this.#over && this.#child.exitCode === null && this.#child.signalCode === null) {
      this.#child.kill(signal);
    }
  }

  /** The first line on its standard output. Fails when it ends or is late without one. */
  async firstLine(seconds: number): Promise<string> {
    const line = () => /^(.*)\n/.exec(this.#stdout)?.[1];
    return this.#within(seconds, "said nothing", async () => {
      await new Promise<void>((resolve, reject) => {
        this.#onOutput = () => {
          if (line() !== undefined) resolve();
          else if (this.#over) reject(new Error(`${this.#name} ended early:\n${this.#stderr}`));
        };
        this.#ended.catch(reject);
        this.#onOutput();
      });
      return line() ?? "";
    });
  }

  /** Waits for its end. One that takes too long is killed, and that is an error. */
  outcome(seconds: number): Promise<Outcome> {
    return this.#within(seconds, "did not end", () => this.#ended);
  }

  async #within<T>(seconds: number, complaint: string, wait: () => Promise<T>): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_, reject) => {
      timer = setTimeout(() => {
        this.signal("SIGKILL");
        reject(new Error(`${this.#name} ${complaint} within ${seconds} s\n${this.#stdout}\n${this.#stderr}`));
      }, seconds * 1000);
    });
    try {
      return await Promise.race([wait(), late]);
    } finally {
      clearTimeout(timer);
    }
  }
}

/** How long a program may take when nothing else is said. */
const SECONDS = 30;

/** Runs a program to its end, whatever that is. */
export function outcomeOf(
  name: string,
  args: readonly string[],
  options: { input?: string; cwd?: string; seconds?: number } = {},
): Promise<Outcome> {
  return new RunningProgram(name, args, options).outcome(options.seconds ?? SECONDS);
}

/** Runs a program that must end with 0; yields its standard output. */
export async function run(
  name: string,
  args: readonly string[],
  options: { input?: string; cwd?: string; seconds?: number } = {},
): Promise<string> {
  const { status, stdout, stderr } = await outcomeOf(name, args, options);
  if (status !== 0) {
    throw new Error(`${name} ${args.join(" ")} ended with ${status}:\n${stdout}\n${stderr}`);
  }
  return stdout;
}

/** Waits until something holds, which must be soon. */
export async function until(what: string, condition: () => boolean, seconds = 10): Promise<void> {
  const deadline = performance.now() + seconds * 1000;
  while (!condition()) {
    if (performance.now() > deadline) throw new Error(`not within ${seconds} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}
