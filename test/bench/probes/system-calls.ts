/** How many system calls a server makes for an operation: counted by the kernel, with `perf`, or else by `strace`. */

import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { type Case, PLAIN } from "../cases.ts";
import type { ContenderKind } from "../contenders.ts";
import { probeKinds, systemCallsName } from "../probes.ts";
import { Program } from "../processes.ts";
import type { Probe } from "../results.ts";
import type { Session } from "../session.ts";

const ATTACH_MS = 500;

type Counter = "perf" | "strace";

const ROUNDS = 3;
/** strace slows down whom it looks at. */
const SECONDS: Readonly<Record<Counter, number>> = { perf: 1, strace: 0.5 };
/** What goes on meanwhile. */
export const systemCallsCase: Case = {
  ...PLAIN,
  name: "system-calls",
  title: "system calls",
  pattern: "randread",
  blockBytes: 4096,
  depth: 32,
};

/** Counts for those contenders that have such a probe, each in the first of its cache modes. */
export async function probeSystemCalls(session: Session, contenders: readonly ContenderKind[]): Promise<Probe[]> {
  const probes: Probe[] = [];
  for (const mode of ["buffered", "direct"] as const) {
    const kinds = contenders.filter(
      (kind) => kind.modes[0] === mode && probeKinds.some(({ name }) => name === systemCallsName(kind.name)),
    );
    await session.enter(mode);
    await session.settle(systemCallsCase, kinds);
    for (const kind of kinds) {
      probes.push({ name: systemCallsName(kind.name), ...(await count(session, kind)) });
    }
  }
  await session.stop();
  return probes;
}

/** With the first tool that works here: perf wants a tracepoint, and both want permissions. */
async function count(session: Session, kind: ContenderKind): Promise<Omit<Probe, "name">> {
  const failures: string[] = [];
  for (const counter of ["perf", "strace"] as const) {
    try {
      const values: number[] = [];
      for (let round = 0; round < ROUNDS; round++) {
        values.push(
          await session.observe(kind, systemCallsCase, SECONDS[counter], async ({ pids }, load) => {
            let operations = 0;
            const calls = await countSystemCalls(counter, pids, async () => {
              operations = await load();
            });
            return calls / operations;
          }),
        );
      }
      return { values, note: counter === "perf" ? undefined : "counted by strace, under which everything is slower" };
    } catch (error) {
      failures.push(error instanceof Error ? error.message : String(error));
    }
  }
  return { values: [], note: failures.join("; ") };
}

/**
 * Counts the system calls of processes, with all of their threads, while `work` goes on.
 * @throws an error when the tool can't do it here, or what `work` throws.
 */
async function countSystemCalls(
  counter: Counter,
  pids: readonly number[],
  work: () => Promise<unknown>,
): Promise<number> {
  const folder = await mkdtemp(join(tmpdir(), "bench-calls-"));
  const output = join(folder, "counts");
  const args =
    counter === "perf"
      ? ["stat", "-x", ",", "-o", output, "-e", "raw_syscalls:sys_enter", "-p", pids.join(",")]
      : ["-c", "-f", "-o", output, ...pids.flatMap((pid) => ["-p", `${pid}`])];
  const tool = new Program({ program: counter, args });
  try {
    await sleep(ATTACH_MS);
    if (!tool.alive) {
      throw tool.error("can't count system calls");
    }
    await work();
    await tool.stop("SIGINT");
    const text = await readFile(output, "utf8");
    return counter === "perf" ? parsePerf(text) : parseStrace(text);
  } finally {
    await tool.stop("SIGKILL");
    await rm(folder, { recursive: true });
  }
}

/** @throws an error when perf didn't count. */
export function parsePerf(text: string): number {
  const [, count] = /^(\d+),[^,]*,raw_syscalls:sys_enter,/m.exec(text) ?? [];
  if (count === undefined) {
    throw new Error("perf did not count system calls");
  }
  return Number(count);
}

/** @throws an error when strace's table has no sum. */
export function parseStrace(text: string): number {
  // % time, seconds, usecs/call, calls, errors if there are any.
  const [, count] = /^100[.,]00\s+\S+\s+\S+\s+(\d+)(?:\s+\d+)?\s+total$/m.exec(text) ?? [];
  if (count === undefined) {
    throw new Error("strace did not count system calls");
  }
  return Number(count);
}
