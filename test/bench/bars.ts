/** What has to be reached. */

import { DISKS, severalName } from "./cases.ts";
import { type CacheMode, type CaseResult, cores, type Measurement, measured } from "./results.ts";
import { ratios, type Spread } from "./statistics.ts";

/** What of the contenders is compared: operations per second, CPU time for each, CPUs and threads in use. */
export type Figure = "rate" | "cpu" | "cores" | "threads";

export interface Bar {
  readonly case: string;
  readonly mode: CacheMode;
  readonly contender: string;
  readonly figure: Figure;
  /** The best of these in each round; without any, the figure itself is judged. */
  readonly than: readonly string[];
  /** The ratio must be at least, or at most, this. */
  readonly least?: number;
  readonly most?: number;
}

export interface Judgement {
  readonly bar: Bar;
  /** Nothing when one of them has no figures. */
  readonly ratio: Spread | undefined;
  readonly met: boolean;
}

const READ = "randread-4k-d";
const WRITE = "randwrite-4k-d";
const NBD_BEST = ["nbdkit-file", "nbdkit-memory", "qemu-raw"] as const;

function atLeast(mode: CacheMode, contender: string, least: number, than: readonly string[], ...cases: string[]) {
  return cases.map((name): Bar => ({ case: name, mode, contender, figure: "rate", than, least }));
}

function manyDisks(figure: Figure): Bar {
  const name = severalName("randread", Math.max(...DISKS));
  return { case: name, mode: "buffered", contender: "ours-ring", figure, than: [] };
}

export const allBars: readonly Bar[] = [
  ...atLeast("direct", "ours-ring", 0.95, ["raw"], `${READ}32`, `${WRITE}32`),
  ...atLeast("buffered", "ours-ring", 1, ["raw"], `${READ}32`, `${WRITE}32`),
  ...atLeast("direct", "ours-ring", 0.85, ["raw"], `${READ}1`, `${WRITE}1`),
  ...atLeast("buffered", "ours-ring", 0.85, ["raw"], `${READ}1`, `${WRITE}1`),
  ...atLeast("buffered", "ours-nbd", 1.5, NBD_BEST, `${READ}32`, `${WRITE}32`),
  ...atLeast("buffered", "ours-nbd", 1.2, NBD_BEST, `${READ}1`, `${WRITE}1`),
  ...atLeast("direct", "ours-nbd", 1.2, ["qemu-raw"], `${READ}32`, `${WRITE}32`),
  ...atLeast("direct", "ours-nbd", 2, ["blktap"], `${READ}32`, `${WRITE}32`),
  ...atLeast("buffered", "ours-nbd", 1, ["nbdkit-file"], "firstwrite-4k-d32"),
  ...atLeast("direct", "ours-nbd", 5, ["blktap"], "firstwrite-4k-d32"),
  ...atLeast("buffered", "ours-chain-30", 0.9, ["ours-chain-1"], `${READ}32`),
  ...atLeast("buffered", "ours-nbd", 0.9, ["nbdkit-file"], "read-1m-d4", "write-1m-d4"),
  // The clients leave room on two CPUs.
  { ...manyDisks("cores"), least: 1 },
  { ...manyDisks("threads"), least: 2 },
  ...[READ, WRITE].map(
    (name): Bar => ({
      case: `${name}32`,
      mode: "buffered",
      contender: "ours-nbd",
      figure: "cpu",
      than: ["nbdkit-file"],
      most: 0.8,
    }),
  ),
  ...atLeast("direct", "ours-chain-30", 0.9, ["ours-chain-1"], `${READ}32`),
];

const figures: Readonly<Record<Figure, (measurement: Measurement) => number>> = {
  rate: ({ perSecond }) => perSecond,
  cpu: ({ cpuMicroseconds }) => cpuMicroseconds,
  cores,
  threads: ({ busyThreads }) => busyThreads ?? Number.NaN,
};

/** Judges those bars whose cases were run, by the median of the rounds' ratios. */
export function judge(bars: readonly Bar[], results: readonly CaseResult[]): Judgement[] {
  return bars.flatMap((bar) => {
    const result = results.find((one) => one.case === bar.case && one.mode === bar.mode);
    if (result === undefined || !present(bar, result)) {
      return [];
    }
    const figure = figures[bar.figure];
    const own = measured(result, bar.contender, figure);
    const ratio = ratios(own, bar.than.length === 0 ? own.map(() => 1) : bestOf(bar, result));
    const { least = 0, most = Number.POSITIVE_INFINITY } = bar;
    return [{ bar, ratio, met: ratio !== undefined && ratio.median >= least && ratio.median <= most }];
  });
}

/** Whether all of them took part. Who isn't installed, or wasn't wanted, is no failure. */
function present(bar: Bar, result: CaseResult): boolean {
  return [bar.contender, ...bar.than].every((name) => result.outcomes[name] !== undefined);
}

/** The best figure of the others in each round; none in a round that one of them failed. */
function bestOf(bar: Bar, result: CaseResult): (number | undefined)[] {
  const all = bar.than.map((contender) => measured(result, contender, figures[bar.figure]));
  const best = bar.least === undefined ? Math.min : Math.max;
  const [first = []] = all;
  return first.map((_, round) => {
    const inRound = all.map((series) => series[round]);
    return inRound.some((value) => value === undefined) ? undefined : best(...inRound.map(Number));
  });
}
