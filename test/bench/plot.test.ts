import { expect, test } from "vitest";
import { plot } from "./plot.ts";
import type { Outcome, Run } from "./results.ts";

function outcome(perSecond: number): Outcome {
  return {
    operations: 1,
    perSecond,
    megabytesPerSecond: 1,
    latency: { p50: 1, p99: 1, p999: 1 },
    cpuMicroseconds: 1,
    residentBytes: 1,
  };
}

test("bars are as long as the medians, and failures have none", () => {
  const outcomes = {
    raw: [outcome(1000), outcome(9000), outcome(4000)],
    "ours-nbd": [outcome(2000)],
    "qemu-raw": [{ error: "" }],
  };
  const svg = plot({ results: [{ case: "randread-4k-d32", mode: "direct", outcomes }] } as unknown as Run);
  const widths = [...svg.matchAll(/<rect x='\d+' y='\d+' width='([\d.]+)'/g)].map(([, width]) => Number(width));
  expect(widths).toEqual([580, 290]);
  expect(svg).toContain(">4 KiB random read, depth 32, direct");
  expect(svg).toContain(">2.00<");
});
