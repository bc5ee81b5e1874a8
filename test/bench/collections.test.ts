import { expect, test } from "vitest";
import { collectionsOfDisks } from "./collections.ts";

test("the collections of all threads but the main one", () => {
  const output = [
    "[9:0x2e6d1000]       44 ms: Scavenge 6.5 (7.5) -> 6.0 (10.5) MB, pooled: 0 MB, 1.22 / 0.00 ms  (average mu = 1.000, current mu = 1.000) allocation failure; ",
    "[9:0x7f9d38001000]       13 ms: Scavenge 3.5 (4.5) -> 2.8 (5.5) MB, pooled: 0 MB, 0.58 / 0.00 ms  (average mu = 1.000, current mu = 1.000) task; ",
    "nbd+unix:///?socket=/tmp/s",
    "[9:0x2e6d1000]       60 ms: Scavenge 8.0 (11.2) -> 7.5 (11.5) MB, pooled: 0 MB, 1.70 / 0.00 ms  (average mu = 1.000, current mu = 1.000) task; ",
    "[9:0x7f9d38001000]       50 ms: Mark-Compact (reduce) 8.0 (11.2) -> 7.5 (11.5) MB, pooled: 0 MB, 3.50 / 0.00 ms  (+ 0.1 ms in 2 steps since start of marking, biggest step 0.0 ms, walltime since start of marking 3 ms) (average mu = 1.000, current mu = 1.000) finalize incremental marking via task; GC in old space requested",
    "[9:0x7f9d48001000]       51 ms: Scavenge 8.0 (11.2) -> 7.5 (11.5) MB, pooled: 0 MB, 0.25 / 0.00 ms  (average mu = 1.000, current mu = 1.000) task; ",
  ].join("\n");
  expect(collectionsOfDisks(output).map(({ milliseconds }) => milliseconds)).toEqual([0.58, 3.5, 0.25]);
  // A disk's thread may be the first that needs one.
  const other = output.replace(/^.*\n/, "").replaceAll("9:0x7f9d48001000", "9:0x7f9d38001000");
  expect(collectionsOfDisks(other).map(({ milliseconds }) => milliseconds)).toEqual([0.58, 3.5, 0.25]);
  expect(collectionsOfDisks("nbd+unix:///?socket=/tmp/s\n")).toEqual([]);
});
