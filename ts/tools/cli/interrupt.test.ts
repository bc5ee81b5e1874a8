import { setTimeout } from "node:timers/promises";
import { expect, it, vi } from "vitest";
import { interrupted, interruptible } from "./interrupt.ts";

it("a signal asks work to end, once, and a second one ends the program unless the work is patient", async () => {
  const exit = vi.spyOn(process, "exit").mockImplementation((status) => {
    throw new Error(`exit ${status}`);
  });
  const stop = vi.fn();
  const listeners = () => process.listenerCount("SIGTERM");
  const before = listeners();
  expect(interrupted()).toBeUndefined();
  const result = await interruptible(
    stop,
    async () => {
      expect(listeners()).toBe(before + 1);
      for (let round = 0; round < 2; round++) {
        process.kill(process.pid, "SIGTERM");
        await setTimeout(50);
      }
      return "done";
    },
    true,
  );
  expect([result, stop.mock.calls.length, exit.mock.calls.length]).toEqual(["done", 1, 0]);
  expect(interrupted()).toBe(143);
  expect(listeners()).toBe(before);
  await interruptible(stop, async () => {
    expect(() => process.emit("SIGINT", "SIGINT")).toThrow("exit 130");
  });
  exit.mockRestore();
});

it("work that is part of other work is asked to end with it", async () => {
  const exit = vi.spyOn(process, "exit").mockImplementation((status) => {
    throw new Error(`exit ${status}`);
  });
  vi.resetModules();
  const fresh = await import("./interrupt.ts");
  const stops: string[] = [];
  const before = process.listenerCount("SIGTERM");
  await fresh.interruptible(
    () => stops.push("whole"),
    async () => {
      await fresh.interruptible(
        () => stops.push("part"),
        async () => {
          process.emit("SIGTERM", "SIGTERM");
        },
      );
      expect(process.listenerCount("SIGTERM")).toBe(before + 1);
    },
  );
  expect(stops).toEqual(["part", "whole"]);
  expect(exit).not.toHaveBeenCalled();
  expect(process.listenerCount("SIGTERM")).toBe(before);
  exit.mockRestore();
});
