import { expect, test } from "vitest";
import { digits, table } from "./markdown.ts";

test("columns are as wide as their contents", () => {
  expect(
    table(
      ["", "a"],
      [
        ["first", "1.00"],
        ["2", "10"],
      ],
    ),
  ).toBe(["|       |    a |", "|-------|-----:|", "| first | 1.00 |", "| 2     |   10 |"].join("\n"));
});

test("figures have about three digits", () => {
  expect([0.123, 1.234, 12.34, 123.4, 1234.5, Number.NaN].map(digits)).toEqual([
    "0.12",
    "1.23",
    "12.3",
    "123",
    "1235",
    "–",
  ]);
});
