/** A run of the benchmark as Markdown. */

import { allBars, type Judgement, judge } from "./bars.ts";
import { allCases, type Case } from "./cases.ts";
import { contenderKinds } from "./contenders.ts";
import { digits, table } from "./markdown.ts";
import { probeKinds } from "./probes.ts";
import { type CacheMode, type CaseResult, isMeasurement, measured, type Probe, type Run, rates } from "./results.ts";
import { ratios, type Spread, spread } from "./statistics.ts";

const LIMIT = "raw";
const OURS = ["ours-nbd", "ours-ring"] as const;
const NONE = "–";
const FAILED = "failed";
const GIB = 2 ** 30;

const modeTitles: Readonly<Record<CacheMode, string>> = {
  buffered: "In the page cache",
  direct: "Around the page cache (O_DIRECT)",
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
    ...errors(run.results),
  ].join("\n\n");
}

function heading(run: Run): string[] {
  const { machine, load } = run;
  const versions = Object.entries(machine.versions).map(([name, value]) => `${name} ${value}`);
  const percent = (share: number) => `${Math.round(100 * share)} %`;
  return [
    `${run.started.slice(0, 16).replace("T", " ")} UTC, commit ${run.commit}, ${run.minutes.toFixed(1)} minutes.`,
    `${machine.cpu}, ${machine.cores} cores, ${(machine.memoryBytes / GIB).toFixed(0)} GiB, Linux ${machine.kernel}, ` +
      `${machine.fileSystem}; ${versions.join(", ")}. ` +
      `Busy just before: ${percent(load.busyBefore)}; taken by the hypervisor meanwhile: ${percent(load.stolen)}.`,
    `${run.rounds} rounds of ${run.seconds} s each; disks of ${(run.diskBytes / GIB).toFixed(1)} GiB. Ratios compare neighbours ` +
      "in the same round; what stands here is the median of the rounds, with minimum and maximum where there is room.",
  ];
}

function judgementTable(judgements: readonly Judgement[]): string {
  const rows = judgements.map(({ bar, ratio, met }) => [
    `${titleOf(bar.contender)}, ${caseTitle(bar.case)}, ${bar.mode}${bar.figure === "cpu" ? ": CPU time" : ""}`,
    `${bar.than.length > 1 ? "best of " : ""}${bar.than.map(titleOf).join(", ")}`,
    bar.most === undefined ? `≥ ${(bar.least ?? 0).toFixed(2)}` : `≤ ${bar.most.toFixed(2)}`,
    range(ratio) ?? FAILED,
    met ? "met" : "**not met**",
  ]);
  return rows.length === 0 ? "None of their cases was run." : table(["", "of", "bar", "reached", ""], rows);
}

function probeTable(probes: readonly Probe[]): string[] {
  const rows = probeKinds.flatMap(({ name, title, unit, most }) => {
    const values = spread(probes.find((one) => one.name === name)?.values ?? []);
    if (values === undefined) {
      return [];
    }
    const verdict = most === undefined ? "" : values.median <= most ? "met" : "**not met**";
    return [[title, most === undefined ? NONE : `≤ ${most} ${unit}`, `${range(values)} ${unit}`, verdict]];
  });
  return rows.length === 0 ? [] : [table(["ours", "bar", "reached", ""], rows)];
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

function quotient(result: CaseResult, contender: string, than: string): string {
  const ratio = ratios(rates(result, contender), rates(result, than));
  if (ratio !== undefined) {
    return digits(ratio.median);
  }
  const tried = result.outcomes[contender] !== undefined && result.outcomes[than] !== undefined;
  return tried ? FAILED : NONE;
}

function figureTable(result: CaseResult): string {
  const large = (findCase(result.case)?.blockBytes ?? 0) >= 1 << 20;
  const rows = contenderKinds
    .filter(({ name }) => result.outcomes[name] !== undefined)
    .map(({ name, title }) => {
      const rate = spread(
        present(large ? measured(result, name, (one) => one.megabytesPerSecond) : thousands(result, name)),
      );
      const middle = (figure: Parameters<typeof measured>[2]) =>
        digits(spread(present(measured(result, name, figure)))?.median ?? Number.NaN);
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

function present(values: readonly (number | undefined)[]): number[] {
  return values.filter((value) => value !== undefined);
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

function range(values: Spread | undefined): string | undefined {
  return values && `${digits(values.median)} (${digits(values.minimum)}–${digits(values.maximum)})`;
}

function titleOf(contender: string): string {
  return contenderKinds.find(({ name }) => name === contender)?.title ?? contender;
}

function caseTitle(name: string): string {
  return findCase(name)?.title ?? name;
}

function findCase(name: string): Case | undefined {
  return allCases.find((one) => one.name === name);
}
