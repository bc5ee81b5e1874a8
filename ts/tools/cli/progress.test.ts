import { describe, expect, it } from "vitest";
import { duration, describe as inWords, Pace } from "./progress.ts";

describe("the pace of a job", () => {
  it("is taken over the last seconds, anew in each phase", () => {
    const pace = new Pace();
    const at = (second: number, done: number, phase = "merging") =>
      pace.estimate({ phase, done, total: 1000 }, second * 1000);
    expect(at(0, 0)).toMatchObject({ rate: 0, secondsLeft: undefined });
    expect(at(1, 100)).toMatchObject({ rate: 100, secondsLeft: 9 });
    for (let second = 2; second <= 20; second++) at(second, 100 + second);
    expect(at(21, 121).rate).toBeCloseTo(1);
    expect(at(22, 5, "syncing")).toMatchObject({ rate: 0, secondsLeft: undefined });
  });

  it("tells no time without a total", () => {
    const pace = new Pace();
    pace.estimate({ phase: "copying", done: 0, total: 0 }, 0);
    expect(pace.estimate({ phase: "copying", done: 2048, total: 0 }, 1000)).toMatchObject({
      rate: 2048,
      secondsLeft: undefined,
    });
  });

  it("is told in words", () => {
    const bytes = { phase: "merging", done: 2 ** 30, total: 3 * 2 ** 30, rate: 2 ** 28, secondsLeft: 8 };
    expect(inWords(bytes)).toBe("1 GiB of 3 GiB, 256 MiB/s, 8 s left");
    const blocks = { phase: "checking blocks", done: 5, total: 0, rate: 2.4, secondsLeft: undefined };
    expect(inWords(blocks)).toBe("5 blocks, 2 blocks/s");
    expect([0.2, 59, 61, 3700].map(duration)).toEqual(["1 s", "59 s", "1 min 1 s", "1 h 1 min"]);
  });
});
