import { expect, test } from "vitest";
import { ratios, spread } from "./statistics.ts";

test("an odd number of values has a middle one", () => {
  expect(spread([9, 1, 10])).toEqual({ minimum: 1, median: 9, maximum: 10 });
});

test("an even number of values has two", () => {
  expect(spread([4, 1, 2, 100])).toEqual({ minimum: 1, median: 3, maximum: 100 });
});

test("nothing has no spread", () => {
  expect(spread([])).toBeUndefined();
});

test("ratios are those of the same round", () => {
  // The medians' ratio would be 1.
  expect(ratios([10, 20, 60], [5, 20, 20])).toEqual({ minimum: 1, median: 2, maximum: 3 });
});

test("rounds that failed don't count", () => {
  expect(ratios([10, undefined, 30], [undefined, 1, 10])).toEqual({ minimum: 3, median: 3, maximum: 3 });
  expect(ratios([1], [0])).toBeUndefined();
});
