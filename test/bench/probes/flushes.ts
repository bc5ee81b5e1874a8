/** How many of a client's flushes share one of the file's: group commit. */

import { allCases, type Case } from "../cases.ts";
import type { ContenderKind } from "../contenders.ts";
import { FLUSH_DEPTHS, flushesName } from "../probes.ts";
import type { Probe } from "../results.ts";
import type { Session } from "../session.ts";
import { countFor, perf } from "./counting.ts";

const SECONDS = 1;

/** The file system's own count, since a flush by io_uring is no system call. */
const counter = perf("ext4:ext4_sync_file_enter");

/** What goes on meanwhile. */
export const flushCases: readonly Case[] = allCases.filter(({ flushEach }) => flushEach);

/** Counts for ours over NBD, if it takes part. */
export async function probeFlushes(session: Session, contenders: readonly ContenderKind[]): Promise<Probe[]> {
  const probes: Probe[] = [];
  await session.enter("buffered");
  for (const kind of contenders.filter(({ name }) => name === "ours-nbd")) {
    for (const depth of FLUSH_DEPTHS) {
      for (const one of flushCases.filter((flushing) => flushing.depth === depth)) {
        await session.settle(one, [kind]);
        probes.push({ name: flushesName(depth), ...(await counted(session, kind, one)) });
      }
    }
  }
  await session.stop();
  return probes;
}

async function counted(session: Session, kind: ContenderKind, one: Case): Promise<Omit<Probe, "name">> {
  try {
    return { values: await countFor(counter, session, kind, one, SECONDS) };
  } catch (error) {
    return { values: [], note: `only on ext4, with perf: ${error instanceof Error ? error.message : String(error)}` };
  }
}
