import { expect, test } from "vitest";
import { parsePerf, parseStrace } from "./probes/system-calls.ts";

test("reads what perf counted", () => {
  expect(parsePerf("# started on Wed Nov 25\n\n37978,,raw_syscalls:sys_enter,417609874,100.00,,\n")).toBe(37978);
  expect(() => parsePerf("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n")).toThrow("did not count");
});

test("reads what strace counted", () => {
  const rule = "------ ----------- ----------- --------- --------- ----------------";
  expect(parseStrace(`${rule}\n100.00    0.000495           5        97           total\n`)).toBe(97);
  expect(parseStrace(`${rule}\n100.00    0.000495           5      1234        12 total\n`)).toBe(1234);
  expect(() => parseStrace("strace: attach: ptrace: Operation not permitted")).toThrow("did not count");
});
