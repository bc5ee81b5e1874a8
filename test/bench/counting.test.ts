import { expect, test } from "vitest";
import { perf, strace } from "./probes/counting.ts";

test("reads what perf counted", () => {
  const { parse } = perf("raw_syscalls:sys_enter");
  expect(parse("# started on Wed Nov 25\n\n37978,,raw_syscalls:sys_enter,417609874,100.00,,\n")).toBe(37978);
  expect(parse("<not counted>,,raw_syscalls:sys_enter,0,0.00,,\n")).toBeUndefined();
  expect(parse("37978,,ext4:ext4_sync_file_enter,417609874,100.00,,\n")).toBeUndefined();
});

test("reads what strace counted", () => {
  const rule = "------ ----------- ----------- --------- --------- ----------------";
  expect(strace.parse(`${rule}\n100.00    0.000495           5        97           total\n`)).toBe(97);
  expect(strace.parse(`${rule}\n100.00    0.000495           5      1234        12 total\n`)).toBe(1234);
  expect(strace.parse("strace: attach: ptrace: Operation not permitted")).toBeUndefined();
});
