/** How many system calls a server makes for an operation: counted by the kernel, with `perf`, or else by `strace`. */

import { type Case, PLAIN } from "../cases.ts";
import type { ContenderKind } from "../contenders.ts";
import { probeKinds, systemCallsName } from "../probes.ts";
import type { Probe } from "../results.ts";
import type { Session } from "../session.ts";
import { type Counter, countFor, perf, strace } from "./counting.ts";

interface Way {
  readonly counter: Counter;
  readonly seconds: number;
  readonly note?: string;
}

/** perf wants a tracepoint, and both want permissions. */
const ways: readonly Way[] = [
  { counter: perf("raw_syscalls:sys_enter"), seconds: 1 },
  { counter: strace, seconds: 0.5, note: "counted by strace, under which everything is slower" },
];

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
      probes.push({ name: systemCallsName(kind.name), ...(await withWhatWorks(session, kind)) });
    }
  }
  await session.stop();
  return probes;
}

async function withWhatWorks(session: Session, kind: ContenderKind): Promise<Omit<Probe, "name">> {
  const failures: string[] = [];
  for (const { counter, seconds, note } of ways) {
    try {
      return { values: await countFor(counter, session, kind, systemCallsCase, seconds), note };
    } catch (error) {
      failures.push(error instanceof Error ? error.message : String(error));
    }
  }
  return { values: [], note: failures.join("; ") };
}
