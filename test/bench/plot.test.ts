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
  const widths = [...svg.matchAll(/<rect x='\d+' y='\d+' width='([\d.]+)' height='14'/g)].map(([, width]) =>
    Number(width),
  );
  // The longest bar has room for the raw file's best round.
  expect(widths).toEqual([148.9, 74.4]);
  expect(svg).toContain(">4 KiB random read, depth 32<");
  expect(svg).toContain(">direct, 1000 operations a second<");
  expect(svg).toContain(">2.00<");
  expect(svg).not.toContain("qemu-nbd");
});
