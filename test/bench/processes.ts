/** Programs that the benchmark starts. Each is ended by its own process id, whatever happens. */

import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";

const STDERR_KEPT = 4000;
const STOP_MS = 20_000;
/** Ticks a second in /proc: the same on every Linux that Node runs on. */
const TICKS = 100;
const PAGE_BYTES = 4096;

const running = new Set<ChildProcess>();

/** Ends whatever still runs, at once. */
export function killAll(): void {
  for (const child of running) {
    child.kill("SIGKILL");
  }
}

export interface Command {
  readonly program: string;
  readonly args: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
}

/** A child process and what it says. */
export class Program {
  readonly #name: string;
  readonly #child: ChildProcess;
  readonly #exited: Promise<unknown>;
  #stdout = "";
  #stderr = "";
  #failure: Error | undefined;

  constructor({ program, args, env }: Command) {
    this.#name = program.slice(program.lastIndexOf("/") + 1);
    this.#child = spawn(program, args, { env: { ...process.env, ...env }, stdio: ["ignore", "pipe", "pipe"] });
    running.add(this.#child);
    this.#child.stdout?.setEncoding("utf8").on("data", (text: string) => {
      this.#stdout += text;
    });
    this.#child.stderr?.setEncoding("utf8").on("data", (text: string) => {
      this.#stderr = (this.#stderr + text).slice(-STDERR_KEPT);
    });
    this.#child.on("error", (error) => {
      this.#failure = error;
    });
    this.#exited = once(this.#child, "close").catch(() => {});
    this.#exited.then(() => running.delete(this.#child));
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  get stdout(): string {
    return this.#stdout;
  }

  get alive(): boolean {
    return this.#failure === undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /** An error about what it was doing, with how it ended and the last that it said. */
  error(what: string): Error {
    const { exitCode, signalCode } = this.#child;
    const how = this.#failure?.message ?? signalCode ?? (exitCode === null ? "" : `status ${exitCode}`);
    const said = this.#stderr.trim().split("\n").slice(-3).join(" / ");
    return new Error([`${this.#name}: ${what}`, how, said].filter((part) => part !== "").join("; "));
  }

  /**
   * Waits until it ends by itself, but not for ever.
   * @throws an error when it doesn't end well.
   */
  async end(limitMs: number): Promise<void> {
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), limitMs);
    await this.#exited;
    clearTimeout(timer);
    if (this.#failure !== undefined || this.#child.exitCode !== 0) {
      throw this.error("failed");
    }
  }

  /** Ends it: others than SIGKILL let it finish, SIGKILL comes when it takes too long. */
  async stop(signal: "SIGTERM" | "SIGINT" | "SIGKILL"): Promise<void> {
    this.#child.kill(signal);
    const timer = setTimeout(() => this.#child.kill("SIGKILL"), STOP_MS);
    await this.#exited;
    clearTimeout(timer);
  }
}

/**
 * Runs a program to its end and returns what it printed.
 * @throws an error when it doesn't end well, or takes too long.
 */
export async function run(command: Command, limitMs = 300_000): Promise<string> {
  const program = new Program(command);
  await program.end(limitMs);
  return program.stdout;
}

/** CPU time of a process and all of its threads so far, in seconds. */
export function cpuSeconds(pid: number): number {
  const fields = statFields(pid);
  // Fields 14 and 15 of the file: utime and stime.
  return (Number(fields[11]) + Number(fields[12])) / TICKS;
}

/** CPU time of all children that have ended, with all of their threads, in seconds. */
export function endedCpuSeconds(): number {
  const fields = statFields(process.pid);
  // Fields 16 and 17 of the file: cutime and cstime.
  return (Number(fields[13]) + Number(fields[14])) / TICKS;
}

/** CPU time of each thread of a process so far, in seconds, by the number of the thread. */
export function threadSeconds(pid: number): ReadonlyMap<string, number> {
  const folder = `/proc/${pid}/task`;
  return new Map(
    readdirSync(folder).flatMap((thread) => {
      try {
        const [nanoseconds] = readFileSync(`${folder}/${thread}/schedstat`, "latin1").split(" ");
        return [[thread, Number(nanoseconds) / 1e9] as const];
      } catch {
        // It has ended meanwhile.
        return [];
      }
    }),
  );
}

/** Memory of a process that is in RAM. */
export function residentBytes(pid: number): number {
  // Field 24 of the file: rss.
  return Number(statFields(pid)[21]) * PAGE_BYTES;
}

/** That part of it that belongs to no file: heaps and stacks, and buffers that aren't shared. */
export function anonymousBytes(pid: number): number {
  const [, kib] = /^RssAnon:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1")) ?? [];
  return Number(kib) * 1024;
}

/** Memory of a process that is in RAM, in which a page that is mapped several times counts once. */
export function proportionalBytes(pid: number): number {
  const [, kib] = /^Pss:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/smaps_rollup`, "latin1")) ?? [];
  return Number(kib) * 1024;
}

/** From the third field on: the second is a name in parentheses, which may contain anything. */
function statFields(pid: number): string[] {
  const text = readFileSync(`/proc/${pid}/stat`, "latin1");
  return text.slice(text.lastIndexOf(")") + 2).split(" ");
}
