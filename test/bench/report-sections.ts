/** The parts of the report that put several cases side by side. */

import { DISKS, severalName, VISITED, VISITS_PER_SECOND } from "./cases.ts";
import { contenderKinds } from "./contenders.ts";
import { SMALL_BYTES } from "./images.ts";
import { table } from "./markdown.ts";
import { caseTitle, FAILED, median, NONE } from "./report-words.ts";
import { type CaseResult, cores, isMeasurement } from "./results.ts";

/** How the work of all disks together grows with their number, and whether all CPUs take part in it. */
export function severalSection(results: readonly CaseResult[]): string[] {
  const tables = (["buffered", "direct"] as const).flatMap((mode) =>
    (["randread", "randwrite"] as const).flatMap((pattern) => {
      const cases = DISKS.map((disks) => ({
        disks,
        result: results.find((one) => one.mode === mode && one.case === severalName(pattern, disks)),
      }));
      const rows = contenderKinds
        .filter(({ name }) => cases.some(({ result }) => result?.outcomes[name] !== undefined))
        .map(({ name, title }) => [
          title,
          ...cases.map(({ result }) => cell(result, name, (one) => one.perSecond / 1000)),
          ...cases.map(({ result }) => cell(result, name, cores)),
          ...cases.map(({ result }) => cell(result, name, ({ busyThreads }) => busyThreads ?? Number.NaN)),
        ]);
      const what = `4 KiB random ${pattern === "randread" ? "read" : "overwrite"}, depth 32 at each disk, ${mode}:`;
      const columns = ["1000/s", "CPUs", "threads"].flatMap((figure) => DISKS.map((disks) => `${figure}, ${disks}`));
      return rows.length === 0 ? [] : [what, table(["", ...columns], rows)];
    }),
  );
  return tables.length === 0
    ? []
    : [
        "## Several disks at once",
        "All operations per second of 1, 4 and 16 disks together; CPUs that the servers kept busy meanwhile (the clients had " +
          "the rest); and how many of their threads used more than a fiftieth of a CPU. Ours is one process with a thread " +
          `for each disk, the others are one process for each. All disks have ${SMALL_BYTES >> 20} MiB.`,
        ...tables,
      ];
}

/** Latencies while clients that come and go make garbage, and while they don't. */
export function visitedSection(results: readonly CaseResult[]): string[] {
  const find = (name: string) => results.find((one) => one.mode === "buffered" && one.case === name);
  const [quiet, visited] = [find(VISITED.quiet), find(VISITED.visited)];
  if (visited === undefined) {
    return [];
  }
  const rows = contenderKinds
    .filter(({ name }) => visited.outcomes[name] !== undefined)
    .map(({ name, title }) => [
      title,
      ...latencies(quiet, name),
      ...latencies(visited, name),
      cell(visited, name, ({ collections, operations, perSecond }) =>
        collections === undefined ? Number.NaN : (collections.count * perSecond) / operations,
      ),
      longestPause(visited, name),
    ]);
  return [
    "## Latency under garbage collection",
    "What serves requests makes no garbage, so nothing is collected while nothing else happens. What makes some in the " +
      `threads that serve are clients that come and go. Here ${VISITS_PER_SECOND} a second do (each shakes hands, reads 4 KiB and goes), ` +
      `beside one that reads all the time. ${caseTitle(VISITED.quiet)}, buffered; microseconds. V8 itself told of the ` +
      "collections in the thread that serves the disk, and how long it stood still (milliseconds, the longest of all rounds).",
    table(
      [
        "",
        ...["p50", "p99", "p99.9"],
        ...["p50 visited", "p99 visited", "p99.9 visited"],
        "collections/s",
        "longest ms",
      ],
      rows,
    ),
  ];
}

function latencies(result: CaseResult | undefined, contender: string): string[] {
  return (["p50", "p99", "p999"] as const).map((name) => cell(result, contender, ({ latency }) => latency[name]));
}

function longestPause(result: CaseResult, contender: string): string {
  const pauses = (result.outcomes[contender] ?? []).flatMap((outcome) =>
    isMeasurement(outcome) && outcome.collections !== undefined ? [outcome.collections.longest] : [],
  );
  return pauses.length === 0 ? NONE : Math.max(...pauses).toFixed(2);
}

function cell(result: CaseResult | undefined, contender: string, figure: Parameters<typeof median>[2]): string {
  const outcomes = result?.outcomes[contender];
  if (result === undefined || outcomes === undefined) {
    return NONE;
  }
  return outcomes.some(isMeasurement) ? median(result, contender, figure) : FAILED;
}
