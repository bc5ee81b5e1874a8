import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, linkSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { serversOf } from "./in-use.ts";

let folder: string;
let path: string;
let children: ChildProcess[];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "in-use-"));
  path = join(folder, "disk.vhd");
  writeFileSync(path, "x");
  children = [];
});
afterEach(() => {
  for (const child of children) child.kill("SIGKILL");
  rmSync(folder, { recursive: true });
});

/** A process of this name that keeps the disk open in this way, as the shell writes it. */
async function holder(name: string, redirection: string): Promise<number> {
  const script = join(folder, name);
  writeFileSync(script, `#!/bin/sh\nexec 3${redirection}"$1"\necho ready\nread end\n`);
  chmodSync(script, 0o755);
  const child = spawn(script, [path], { stdio: ["pipe", "pipe", "inherit"] });
  children.push(child);
  await once(child.stdout, "data");
  return child.pid ?? 0;
}

it("finds a tapdisk that has the file open for writing, by any name", async () => {
  const pid = await holder("tapdisk", "<>");
  linkSync(path, join(folder, "hard"));
  symlinkSync(path, join(folder, "soft"));
  for (const name of ["disk.vhd", "hard", "soft"]) {
    expect(serversOf(join(folder, name))).toEqual([pid]);
  }
  writeFileSync(join(folder, "other"), "x");
  expect(serversOf(join(folder, "other"))).toEqual([]);
  expect(serversOf(join(folder, "missing"))).toEqual([]);
});

it("leaves those alone that only read it, and other programs", async () => {
  await holder("tapdisk", "<");
  await holder("editor", "<>");
  expect(serversOf(path)).toEqual([]);
});
