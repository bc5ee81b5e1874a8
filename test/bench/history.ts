/** The line that each full run leaves in RESULTS.md when the next one replaces it. */

import { allBars, judge } from "./bars.ts";
import { digits } from "./markdown.ts";
import type { Run } from "./results.ts";

const TITLE = "## History";
const INTRODUCTION =
  "The ratios of the bars, in their order, of earlier full runs and this one. They compare within a run; different runs met different machines and loads. Until 2026-11-25 12:56 NBD servers were measured with fio's client, and page caches were as they happened to be.";
const KEPT = 10;

/** The history section with one more run, newest first. `previous` is the whole file as it was. */
export function history(previous: string, run: Run): string {
  const at = previous.indexOf(TITLE);
  const earlier =
    at < 0
      ? []
      : previous
          .slice(at)
          .split("\n")
          .filter((line) => line.startsWith("- "));
  return [TITLE, INTRODUCTION, [entry(run), ...earlier].slice(0, KEPT).join("\n")].join("\n\n");
}

function entry(run: Run): string {
  const judgements = judge(allBars, run.results);
  const ratios = allBars.map((bar) => {
    const judgement = judgements.find((one) => one.bar === bar);
    if (judgement === undefined) {
      return "–";
    }
    return judgement.ratio === undefined ? "failed" : digits(judgement.ratio.median);
  });
  return `- ${run.started.slice(0, 10)}, ${run.commit}, ${run.machine.cpu}: ${ratios.join(", ")}`;
}
