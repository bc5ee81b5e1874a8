import { expect, it } from "vitest";
import * as z from "zod";
import { describeIssue, integer, size } from "./arguments.ts";

it("sizes have units", () => {
  const schema = size(512, 2 ** 50);
  const cases = { "512": 512, "1k": 1024, "2M": 2 << 20, "1.5G": 1.5 * 2 ** 30, "1TiB": 2 ** 40, "3MB": 3 << 20 };
  for (const [text, bytes] of Object.entries(cases)) expect(schema.parse(text)).toBe(bytes);
  for (const text of ["", "511", "-1", "1.3", "1X", "0x400", "1e3", "9999999T", "1 G"]) {
    expect(schema.safeParse(text).success, text).toBe(false);
  }
});

it("numbers are whole and in their range", () => {
  const schema = integer(0, 255);
  expect(schema.parse("255")).toBe(255);
  for (const text of ["256", "-1", "1.0", "", " 1", "0x1"]) expect(schema.safeParse(text).success, text).toBe(false);
});

it("what is wrong is told by the name that was typed", () => {
  const wrong = z.object({ bitmapCache: integer(1, 2) }).safeParse({ bitmapCache: "9" });
  const { error } = wrong;
  expect(error && describeIssue(error)).toBe("--bitmap-cache: expected a whole number from 1 to 2");
  expect(error && describeIssue(error, ["bitmapCache"])).toMatch(/^bitmapCache: /);
});
