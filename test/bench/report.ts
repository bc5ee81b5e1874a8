/** A run of the benchmark as Markdown. */

import type { AwakeBy } from "./awake.ts";
import { allBars, type Figure, type Judgement, judge } from "./bars.ts";
import { contenderKinds } from "./contenders.ts";
import { table } from "./markdown.ts";
import { probeKinds } from "./probes.ts";
import { severalSection, visitedSection } from "./report-sections.ts";
import { caseTitle, FAILED, findCase, median, NONE, present, quotient, range, titleOf } from "./report-words.ts";
import { type CacheMode, type CaseResult, isMeasurement, measured, type Probe, type Run, rates } from "./results.ts";
import { spread } from "./statistics.ts";

const LIMIT = "raw";
const OURS = ["ours-nbd", "ours-ring"] as const;
const GIB = 2 ** 30;

const modeTitles: Readonly<Record<CacheMode, string>> = {
  buffered: "In the page cache",
  direct: "Around the page cache (O_DIRECT)",
};

const figureTitles: Readonly<Record<Figure, string>> = {
  rate: "",
  cpu: ": CPU time",
  cores: ": CPUs in use",
  threads: ": threads in use",
};

/** Everything but the history. */
export function report(run: Run): string {
  const modes = [...new Set(run.results.map(({ mode }) => mode))];
  return [
    ...heading(run),
    "## Bars",
    judgementTable(judge(allBars, run.results)),
    ...probeTable(run.probes),
    "![Operations per second](results.svg)",
    ...modes.flatMap((mode) =>
      modeSection(
        mode,
        run.results.filter((result) => result.mode === mode),
      ),
    ),
    ...severalSection(run.results),
    ...visitedSection(run.results),
    ...errors(run.results),
  ].join("\n\n");
}

const AWAKE: Readonly<Record<AwakeBy, string>> = {
  polling: "CPUs without work polled rather than halted.",
  loops: "CPUs were kept from halting by busy loops of the lowest priority.",
};

function heading(run: Run): string[] {
  const { machine, load } = run;
  const versions = Object.entries(machine.versions).map(([name, value]) => `${name} ${value}`);
  const percent = (share: number) => `${Math.round(100 * share)} %`;
  return [
    `${run.started.slice(0, 16).replace("T", " ")} UTC, commit ${run.commit}, ${run.minutes.toFixed(1)} minutes.`,
    `${machine.cpu}, ${machine.cores} cores, ${(machine.memoryBytes / GIB).toFixed(0)} GiB, Linux ${machine.kernel}, ` +
      `${machine.fileSystem}; ${versions.join(", ")}. ` +
      `Busy just before: ${percent(load.busyBefore)}; taken by the hypervisor meanwhile: ${percent(load.stolen)}. ${AWAKE[load.awake]}`,
    `${run.rounds} rounds of ${run.seconds} s each; disks of ${(run.diskBytes / GIB).toFixed(1)} GiB. Ratios compare neighbours ` +
      "in the same round; what stands here is the median of the rounds, with minimum and maximum where there is room.",
    "Files are read and written by fio with io_uring, rings by ring-client, NBD servers by nbd-load: fio's NBD client takes more " +
      "CPU time for an operation than most servers, which then look all alike. Where a case says so, it is used nevertheless. " +
      "Our clients look for answers before they sleep, for 0.1 ms from the page cache and 1 ms around it.",
  ];
}

function judgementTable(judgements: readonly Judgement[]): string {
  const rows = judgements.map(({ bar, ratio, met }) => [
    `${titleOf(bar.contender)}, ${caseTitle(bar.case)}, ${bar.mode}${figureTitles[bar.figure]}`,
    bar.than.length === 0 ? NONE : `${bar.than.length > 1 ? "best of " : ""}${bar.than.map(titleOf).join(", ")}`,
    bar.most === undefined ? `≥ ${(bar.least ?? 0).toFixed(2)}` : `≤ ${bar.most.toFixed(2)}`,
    range(ratio) ?? FAILED,
    met ? "met" : "**not met**",
  ]);
  return rows.length === 0 ? "None of their cases was run." : table(["", "of", "bar", "reached", ""], rows);
}

function probeTable(probes: readonly Probe[]): string[] {
  const rows = probeKinds.flatMap(({ name, title, unit, most }) => {
    const probe = probes.find((one) => one.name === name);
    if (probe === undefined) {
      return [];
    }
    const values = spread(probe.values);
    const met = values !== undefined && (most === undefined || values.median <= most);
    return [
      [
        title,
        most === undefined ? NONE : `≤ ${most} ${unit}`.trimEnd(),
        values === undefined ? FAILED : `${range(values)} ${unit}`.trimEnd(),
        most === undefined ? "" : met ? "met" : "**not met**",
      ],
    ];
  });
  const notes = probes.flatMap(({ name, note }) =>
    note === undefined ? [] : [`- ${probeKinds.find((kind) => kind.name === name)?.title ?? name}: ${note}`],
  );
  return [
    ...(rows.length === 0 ? [] : [table(["", "bar", "reached", ""], rows)]),
    ...(notes.length === 0 ? [] : [notes.join("\n")]),
  ];
}

function modeSection(mode: CacheMode, results: readonly CaseResult[]): string[] {
  const present = contenderKinds.filter(({ name }) => results.some(({ outcomes }) => outcomes[name] !== undefined));
  const names = present.map(({ name }) => name);
  const ours = OURS.filter((name) => names.includes(name));
  const others = names.filter((name) => !name.startsWith("ours-chain"));
  return [
    `## ${modeTitles[mode]}`,
    ...ours.flatMap((name) => [
      `${titleOf(name)} as a multiple of the others' operations per second:`,
      ratioTable(
        results,
        others.filter((other) => other !== name),
        (result, other) => quotient(result, name, other),
      ),
    ]),
    ...(names.includes(LIMIT)
      ? [
          `Each as a share of the ${titleOf(LIMIT)}:`,
          ratioTable(
            results,
            others.filter((name) => name !== LIMIT),
            (result, name) => quotient(result, name, LIMIT),
          ),
        ]
      : []),
    ...results.flatMap((result) => [`### ${caseTitle(result.case)}, ${mode}`, figureTable(result)]),
  ];
}

function ratioTable(
  results: readonly CaseResult[],
  columns: readonly string[],
  cell: (result: CaseResult, column: string) => string,
): string {
  return table(
    ["", ...columns.map(titleOf)],
    results.map((result) => [caseTitle(result.case), ...columns.map((column) => cell(result, column))]),
  );
}

function figureTable(result: CaseResult): string {
  const large = (findCase(result.case)?.blockBytes ?? 0) >= 1 << 20;
  const rows = contenderKinds
    .filter(({ name }) => result.outcomes[name] !== undefined)
    .map(({ name, title }) => {
      const rate = spread(
        present(large ? measured(result, name, (one) => one.megabytesPerSecond) : thousands(result, name)),
      );
      const middle = (figure: Parameters<typeof measured>[2]) => median(result, name, figure);
      return [
        title,
        range(rate) ?? FAILED,
        middle(({ latency }) => latency.p50),
        middle(({ latency }) => latency.p99),
        middle(({ latency }) => latency.p999),
        middle(({ cpuMicroseconds }) => cpuMicroseconds),
        middle(({ residentBytes }) => residentBytes / 2 ** 20),
      ];
    });
  return table(["", large ? "MB/s" : "1000/s", "p50 µs", "p99 µs", "p99.9 µs", "CPU µs/op", "RSS MiB"], rows);
}

function thousands(result: CaseResult, contender: string): (number | undefined)[] {
  return rates(result, contender).map((rate) => (rate === undefined ? undefined : rate / 1000));
}

/** A line for each error of a contender, with the cases that met it. */
function errors(results: readonly CaseResult[]): string[] {
  const places = new Map<string, string[]>();
  for (const result of results) {
    for (const [name, outcomes] of Object.entries(result.outcomes)) {
      for (const error of new Set(outcomes.flatMap((outcome) => (isMeasurement(outcome) ? [] : [outcome.error])))) {
        const what = `${titleOf(name)}: ${error}`;
        places.set(what, [...(places.get(what) ?? []), `${result.case} ${result.mode}`]);
      }
    }
  }
  const lines = [...places].map(([what, cases]) => `- ${what} (${cases.join(", ")})`);
  return lines.length === 0 ? [] : ["## What failed", lines.join("\n")];
}
