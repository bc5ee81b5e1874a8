/** What has to be reached. */

import { type CacheMode, type CaseResult, rates } from "./results.ts";
import { ratios, type Spread } from "./statistics.ts";

export interface Bar {
  readonly case: string;
  readonly mode: CacheMode;
  readonly contender: string;
  /** The best of these in each round. */
  readonly than: readonly string[];
  readonly least: number;
}

export interface Judgement {
  readonly bar: Bar;
  /** Nothing when one of them has no figures. */
  readonly ratio: Spread | undefined;
  readonly met: boolean;
}

const DEPTH_32 = ["randread-4k-d32", "randwrite-4k-d32"] as const;

function buffered(contender: string, than: readonly string[], least: number): Bar[] {
  return DEPTH_32.map((name) => ({ case: name, mode: "buffered", contender, than, least }));
}

export const allBars: readonly Bar[] = [
  ...buffered("ours-ring", ["raw"], 0.7),
  ...buffered("ours-nbd", ["qemu-raw"], 1.5),
  ...buffered("ours-nbd", ["nbdkit-file"], 1),
];

/** Judges those bars whose cases were run, by the median of the rounds' ratios. */
export function judge(bars: readonly Bar[], results: readonly CaseResult[]): Judgement[] {
  return bars.flatMap((bar) => {
    const result = results.find((one) => one.case === bar.case && one.mode === bar.mode);
    if (result === undefined) {
      return [];
    }
    const ratio = ratios(rates(result, bar.contender), bestOf(result, bar.than));
    return [{ bar, ratio, met: ratio !== undefined && ratio.median >= bar.least }];
  });
}

/** The highest rate in each round; none in a round that one of them failed. */
function bestOf(result: CaseResult, contenders: readonly string[]): (number | undefined)[] {
  const all = contenders.map((contender) => rates(result, contender));
  const [first = []] = all;
  return first.map((_, round) => {
    const inRound = all.map((series) => series[round]);
    return inRound.some((rate) => rate === undefined) ? undefined : Math.max(...inRound.map(Number));
  });
}
