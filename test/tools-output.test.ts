// What programs do when what they print can't be written, or nobody reads it.

import { readdirSync } from "node:fs";
import { expect, test } from "vitest";
import { outcomeOf, temporaryDirectory } from "./support/run.ts";
import { builtCommand, vhdUtilIn } from "./support/tools.ts";

function inFolder(): { folder: string; shell: (script: string) => ReturnType<typeof outcomeOf> } {
  const folder = temporaryDirectory();
  expect(vhdUtilIn(folder)("create", "-n", "a.vhd", "-s", "4").status).toBe(0);
  return { folder, shell: (script) => outcomeOf("bash", ["-c", script], { cwd: folder }) };
}

test.for([
  ["vhd-util", "query -v -n a.vhd", 28],
  ["vhd-util", "create --help", 28],
  ["vhd-util", "read -B -n a.vhd", 28],
  ["td-util", "query vhd -v a.vhd", 28],
  ["vhd-check", "a.vhd", 8],
  ["vhd-check", "--json a.vhd", 8],
  ["vhd-coalesce", "--json-schema", 1],
  ["tapdisk", "serve vhd:a.vhd", 1],
  ["tapdisk", "--help", 1],
] as const)("%s %s says that its output can't be written, and fails", async ([name, args, expected]) => {
  const { shell } = inFolder();
  const { status, stderr } = await shell(`exec "${builtCommand(name)}" ${args} > /dev/full`);
  expect(stderr).toMatch(new RegExp(`^${name}( read)?: standard output: ENOSPC: no space left on device, write\n$`));
  expect(status).toBe(expected);
});

test("what nobody reads ends a program without words", async () => {
  const { shell } = inFolder();
  for (const [name, args] of [
    ["vhd-util", "query -v -n a.vhd"],
    ["vhd-util", "read -B -n a.vhd"],
    ["vhd-check", "a.vhd"],
    ["tapdisk", "serve vhd:a.vhd"],
  ] as const) {
    // The reader is gone before anything is written.
    const script = `exec 3> >(true); wait $!; exec "${builtCommand(name)}" ${args} >&3`;
    expect(await shell(script), `${name} ${args}`).toMatchObject({ status: 141, stderr: "" });
  }
});

test("names that are not UTF-8 are refused, not changed", async () => {
  const { folder, shell } = inFolder();
  for (const [name, args, expected] of [
    ["vhd-util", "create -s 4 -n", 22],
    ["vhd-check", "", 16],
    ["tapdisk", "serve", 2],
  ] as const) {
    const { status, stderr } = await shell(`exec "${builtCommand(name)}" ${args} $'vhd:b\\xff.vhd'`);
    expect(stderr).toMatch(/'vhd:b\ufffd.vhd' is not UTF-8/);
    expect(status).toBe(expected);
  }
  expect(vhdUtilIn(folder)("create", "-n", "\ufffd.vhd", "-s", "4").status).toBe(0);
  expect(readdirSync(folder).sort()).toEqual(["a.vhd", "\ufffd.vhd"]);
});

test("what an image says doesn't talk to the terminal", async () => {
  const { shell } = inFolder();
  await shell(`mv a.vhd $'e\\e[31m\\a.vhd'; "${builtCommand("vhd-util")}" snapshot -n b.vhd -p e*; mv e* c.vhd`);
  for (const [name, args] of [
    ["vhd-check", "b.vhd"],
    ["vhd-coalesce", "b.vhd"],
    ["vhd-util", "tree"],
    ["vhd-util", "check -n b.vhd"],
    ["vhd-util", "map -n b.vhd"],
    ["tapdisk", "serve vhd:b.vhd"],
  ] as const) {
    const { stdout, stderr } = await shell(`"${builtCommand(name)}" ${args}`);
    expect(stdout + stderr, `${name} ${args}`).toContain("e\\x1b[31m\\x07.vhd");
    expect(stdout + stderr, `${name} ${args}`).not.toMatch(/[^\P{Cc}\n]/u);
  }
});
