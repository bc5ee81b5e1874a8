/** The `tapdisk` that the build left, served for one test. */

import { join } from "node:path";
import { expect } from "vitest";
import { type Outcome, outcomeOf, RunningProgram } from "./run.ts";

const bin = join(import.meta.dirname, "../../build/bin");
const program = join(bin, "tapdisk");
/** The guest's side of a ring. */
export const ringClient: string = join(bin, "ring-client");
/** A lean NBD client. */
export const nbdLoad: string = join(bin, "nbd-load");

/** Both executors of file operations, for tests of the data plane. */
export const backends = ["uring", "threads"] as const;

const START_SECONDS = 20;
const STOP_SECONDS = 20;

/** A `tapdisk serve` that is ready. */
export class Tapdisk {
  readonly uri: string;
  readonly program: RunningProgram;

  constructor(uri: string, running: RunningProgram) {
    this.uri = uri;
    this.program = running;
  }

  /** The path of its NBD socket. */
  get socket(): string {
    const path = new URL(this.uri).searchParams.get("socket");
    if (path === null) throw new Error(`no Unix socket in ${this.uri}`);
    return path;
  }

  /** Ends it as its user would. It must finish its work and exit with 0, with nothing to complain about but `complaint`. */
  async stop(complaint = ""): Promise<void> {
    this.program.signal("SIGTERM");
    const { status, stderr } = await this.program.outcome(STOP_SECONDS);
    expect({ status, stderr }).toEqual({ status: 0, stderr: complaint });
  }

  /** Ends it as a crash would. */
  async kill(): Promise<void> {
    this.program.signal("SIGKILL");
    await this.program.outcome(STOP_SECONDS);
  }
}

/** Serves a disk (`vhd:/path`); waits until it is ready. */
export async function serve(disk: string, ...options: string[]): Promise<Tapdisk> {
  const running = new RunningProgram(program, ["serve", disk, ...options]);
  return new Tapdisk(await running.firstLine(START_SECONDS), running);
}

/** Serves a disk that must be refused. */
export async function refused(disk: string, ...options: string[]): Promise<Outcome> {
  const outcome = await outcomeOf(program, ["serve", disk, ...options], { seconds: START_SECONDS });
  expect(outcome.stdout).toBe("");
  expect(outcome.status).toBe(1);
  return outcome;
}

/** Does something with a disk that is served for just that. */
export async function whileServed<T>(
  disk: string,
  options: readonly string[],
  work: (tapdisk: Tapdisk) => Promise<T>,
): Promise<T> {
  const tapdisk = await serve(disk, ...options);
  const result = await work(tapdisk);
  await tapdisk.stop();
  return result;
}
