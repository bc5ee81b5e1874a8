// Programs start with bytecode that was made when they were built, and without it as well.

import { cpSync, existsSync, globSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { basename, join } from "node:path";
import { expect, test } from "vitest";
import { bundleScript } from "../ts/boot/load.ts";
import { outcomeOf, temporaryDirectory } from "./support/run.ts";

const lib = join(import.meta.dirname, "../build/lib");
const names = globSync(join(lib, "*.bundle.cjs")).map((file) => basename(file, ".bundle.cjs"));

test("programs and data planes have some", () => {
  expect(names).toContain("tapdisk");
  expect(names).toContain("worker");
  for (const name of names) expect(existsSync(join(lib, `${name}.cache`)), name).toBe(true);
});

test.each(names)("Node takes the bytecode of %s", (name) => {
  expect(bundleScript(join(lib, name)).cachedDataRejected).toBe(false);
});

test.each([
  ["is missing", (cache: string) => rmSync(cache)],
  ["is empty", (cache: string) => truncateSync(cache, 0)],
  ["was cut off", (cache: string) => truncateSync(cache, 1000)],
  [
    "is another version's",
    (cache: string) => {
      const bytes = readFileSync(cache);
      bytes.writeUInt8(bytes.readUInt8(4) ^ 1, 4);
      writeFileSync(cache, bytes);
    },
  ],
])("a program does without when the bytecode %s", async (_how, change) => {
  const folder = temporaryDirectory();
  for (const file of ["vhd-util.cjs", "vhd-util.bundle.cjs", "vhd-util.cache"])
    cpSync(join(lib, file), join(folder, file));
  change(join(folder, "vhd-util.cache"));
  const outcome = await outcomeOf(process.execPath, [join(folder, "vhd-util.cjs"), "--version"]);
  expect(outcome).toMatchObject({ status: 0, stderr: "" });
  expect(outcome.stdout).toMatch(/^vhd-util \(tapvhd\) /);
});
