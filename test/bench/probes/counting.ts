/** Counting what a server asks of the kernel, for each operation. */

import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Case } from "../cases.ts";
import type { ContenderKind } from "../contenders.ts";
import { Program } from "../processes.ts";
import type { Session } from "../session.ts";

const ROUNDS = 3;
const ATTACH_MS = 500;

/** A program that counts until it is interrupted. */
export interface Counter {
  readonly program: string;
  /** Its arguments, to count for processes and all of their threads and to write into a file. */
  readonly args: (pids: readonly number[], output: string) => string[];
  /** What it has counted, from what it wrote; nothing if it hasn't. */
  readonly parse: (text: string) => number | undefined;
}

/** Counts one of the kernel's tracepoints. */
export function perf(event: string): Counter {
  return {
    program: "perf",
    args: (pids, output) => ["stat", "-x", ",", "-o", output, "-e", event, "-p", pids.join(",")],
    parse: (text) => {
      const fields = text.split("\n").map((line) => line.split(","));
      const count = fields.find(([, , name]) => name === event)?.[0];
      return count !== undefined && /^\d+$/.test(count) ? Number(count) : undefined;
    },
  };
}

/** Counts system calls. It slows down whom it looks at. */
export const strace: Counter = {
  program: "strace",
  args: (pids, output) => ["-c", "-f", "-o", output, ...pids.flatMap((pid) => ["-p", `${pid}`])],
  parse: (text) => {
    // % time, seconds, usecs/call, calls, errors if there are any.
    const [, count] = /^100[.,]00\s+\S+\s+\S+\s+(\d+)(?:\s+\d+)?\s+total$/m.exec(text) ?? [];
    return count === undefined ? undefined : Number(count);
  },
};

/**
 * Counts several times for a contender under a load of so many seconds. Returns how many there were for each operation.
 * @throws an error when the counter can't do it here, or the load fails.
 */
export async function countFor(
  counter: Counter,
  session: Session,
  kind: ContenderKind,
  load: Case,
  seconds: number,
): Promise<number[]> {
  const values: number[] = [];
  for (let round = 0; round < ROUNDS; round++) {
    values.push(
      await session.observe(kind, load, seconds, async ({ pids }, work) => {
        let operations = 0;
        const counted = await count(counter, pids, async () => {
          operations = await work();
        });
        return counted / operations;
      }),
    );
  }
  return values;
}

async function count(counter: Counter, pids: readonly number[], work: () => Promise<void>): Promise<number> {
  const folder = await mkdtemp(join(tmpdir(), "bench-count-"));
  const output = join(folder, "counts");
  const tool = new Program({ program: counter.program, args: counter.args(pids, output) });
  try {
    await sleep(ATTACH_MS);
    if (!tool.alive) {
      throw tool.error("can't count here");
    }
    await work();
    await tool.stop("SIGINT");
    const counted = counter.parse(await readFile(output, "utf8"));
    if (counted === undefined) {
      throw tool.error("did not count");
    }
    return counted;
  } finally {
    await tool.stop("SIGKILL");
    await rm(folder, { recursive: true });
  }
}
