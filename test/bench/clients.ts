/** The programs that make load, and what they report. */

import { cpus } from "node:os";
import { join } from "node:path";
import { z } from "zod";
import type { Case } from "./cases.ts";
import { type Command, run } from "./processes.ts";
import type { CacheMode, Latency } from "./results.ts";

/** Where a contender serves its disk. */
export type Endpoint =
  | { readonly kind: "file"; readonly path: string }
  | { readonly kind: "nbd"; readonly socket: string }
  | { readonly kind: "ring"; readonly socket: string };

export interface Load {
  readonly case: Case;
  readonly mode: CacheMode;
  readonly seconds: number;
  /** Of each disk. */
  readonly diskBytes: number;
  /** Accesses begin at multiples of so many bytes. */
  readonly alignBytes: number;
  readonly seed: number;
}

/** What a client saw. */
export interface Report {
  readonly operations: number;
  readonly seconds: number;
  readonly latency: Latency;
}

const PATIENCE_MS = 60_000;

/**
 * Our clients look for answers before they sleep, as guests do that know that a halt is expensive. Not for long: where client
 * and server meet on one CPU, because the other is busy, the server waits for the end of it. But as long as devices take:
 * at depth 32 they answer in batches, up to half a millisecond apart. Clients that are as many as the CPUs don't look.
 */
const POLL_MICROSECONDS: Readonly<Record<CacheMode, number>> = { buffered: 100, direct: 1000 };

/**
 * Makes load on disks, on all at once. This project's programs are in `commands`.
 * @throws an error that says what went wrong.
 */
export async function measure(endpoints: readonly Endpoint[], load: Load, commands: string): Promise<Report> {
  const limit = load.seconds * 1000 + PATIENCE_MS;
  const sockets = (kind: Endpoint["kind"]) =>
    endpoints.flatMap((endpoint) => (endpoint.kind === kind && endpoint.kind !== "file" ? [endpoint.socket] : []));
  const [rings, servers] = [sockets("ring"), sockets("nbd")];
  if (rings.length > 0) {
    return parseOurReport(await run(ourCommand(join(commands, "ring-client"), ["bench"], rings, load), limit));
  }
  if (servers.length > 0 && load.case.client === "lean") {
    const flush = load.case.flushEach ? ["--flush-each"] : [];
    return parseOurReport(await run(ourCommand(join(commands, "nbd-load"), flush, servers, load), limit));
  }
  return parseFioReport(await run(fioCommand(endpoints, load), limit));
}

/** One process with a thread for each disk. */
function fioCommand(endpoints: readonly Endpoint[], load: Load): Command {
  return {
    program: "fio",
    args: [
      "--output-format=json",
      "--name=global",
      `--rw=${load.case.pattern}`,
      `--bs=${load.case.blockBytes}`,
      `--blockalign=${load.alignBytes}`,
      `--iodepth=${load.case.depth}`,
      `--size=${load.diskBytes}`,
      `--runtime=${Math.round(load.seconds * 1000)}ms`,
      "--time_based",
      ...(load.case.flushEach ? ["--fsync=1"] : []),
      "--thread",
      "--group_reporting",
      "--norandommap",
      "--randrepeat=1",
      `--randseed=${load.seed}`,
      "--percentile_list=50:99:99.9",
      ...endpoints.flatMap((endpoint, index) => [`--name=disk${index}`, ...fioEngine(endpoint, load.mode)]),
    ],
  };
}

function fioEngine(endpoint: Endpoint, mode: CacheMode): string[] {
  return endpoint.kind === "file"
    ? [
        "--ioengine=io_uring",
        `--filename=${endpoint.path}`,
        `--direct=${mode === "direct" ? 1 : 0}`,
        // The cache stays as it is.
        "--invalidate=0",
        "--fadvise_hint=0",
      ]
    : ["--ioengine=nbd", `--uri=nbd+unix:///?socket=${endpoint.socket}`];
}

/** The same, by ring-client or nbd-load, which have their options in common. */
function ourCommand(program: string, first: readonly string[], sockets: readonly string[], load: Load): Command {
  const [socket = "", ...others] = sockets;
  const options: Readonly<Record<string, string | number>> = {
    socket,
    rw: load.case.pattern,
    bs: load.case.blockBytes,
    depth: load.case.depth,
    seconds: load.seconds,
    span: load.diskBytes,
    align: load.alignBytes,
    seed: load.seed,
    "poll-us": sockets.length < cpus().length ? POLL_MICROSECONDS[load.mode] : 0,
  };
  const named = Object.entries(options).flatMap(([name, value]) => [`--${name}`, `${value}`]);
  return { program, args: [...first, ...named, ...others.flatMap((other) => ["--beside", other])] };
}

const direction = z.object({
  total_ios: z.number(),
  runtime: z.number(),
  clat_ns: z.object({ percentile: z.record(z.string(), z.number()).default({}) }),
});

const fioReport = z.object({
  jobs: z.tuple([
    z.object({
      error: z.number(),
      read: direction,
      write: direction,
    }),
  ]),
});

/** @throws an error when fio's job failed or did nothing. */
export function parseFioReport(text: string): Report {
  // Warnings may come first.
  const [job] = fioReport.parse(JSON.parse(text.slice(text.indexOf("{")))).jobs;
  if (job.error !== 0) {
    throw new Error(`fio: error ${job.error}`);
  }
  const { total_ios, runtime, clat_ns } = job.read.total_ios > 0 ? job.read : job.write;
  const microseconds = (name: string) => (clat_ns.percentile[name] ?? Number.NaN) / 1000;
  return checked("fio", {
    operations: total_ios,
    seconds: runtime / 1000,
    latency: { p50: microseconds("50.000000"), p99: microseconds("99.000000"), p999: microseconds("99.900000") },
  });
}

const ourReport = z.object({
  ios: z.number(),
  seconds: z.number(),
  latency_us: z.object({ p50: z.number(), p99: z.number(), p999: z.number() }),
});

/** @throws an error when nothing was done. */
export function parseOurReport(text: string): Report {
  const report = ourReport.parse(JSON.parse(text));
  const { p50, p99, p999 } = report.latency_us;
  return checked("the client", {
    operations: report.ios,
    seconds: report.seconds,
    latency: { p50, p99, p999 },
  });
}

function checked(client: string, report: Report): Report {
  if (!(report.operations > 0 && report.seconds > 0)) {
    throw new Error(`${client}: nothing was done`);
  }
  return report;
}
