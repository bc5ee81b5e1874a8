// The same command lines given to the original vhd-util (blktap 4.0.8) and to ours, on equal files: standard output and exit
// status are compared. Part of `make interop BLKTAP=<prefix>` only.

import { chmodSync, cpSync, existsSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { MIB, pattern, SECTOR } from "./support/data.ts";
import { temporaryDirectory } from "./support/run.ts";
import { builtCommand, runIn, type ToolResult, writeDisk } from "./support/tools.ts";

const original = join(process.env.BLKTAP ?? "", "bin/vhd-util");

const KIB = 1024;

/** Two folders with equal files: whoever changes them changes his own. */
let sample: string;
beforeAll(async () => {
  sample = mkdtempSync(join(tmpdir(), "tapvhd-vhd-util-"));
  const make = (...args: string[]) => expect(runIn(sample, original, args)).toMatchObject({ status: 0 });
  make("create", "-n", "base.vhd", "-s", "20");
  make("create", "-n", "pre.vhd", "-s", "100", "-S", "4096");
  make("create", "-n", "fixed.vhd", "-s", "4", "-r");
  writeFileSync(join(sample, "raw.img"), "");
  truncateSync(join(sample, "raw.img"), 20 * MIB);
  await writeDisk(join(sample, "base.vhd"), [
    { offset: 0, data: pattern(64 * KIB, 1) },
    { offset: 4 * MIB, data: pattern(2 * MIB, 2) },
  ]);
  make("snapshot", "-n", "s1.vhd", "-p", "base.vhd");
  await writeDisk(join(sample, "s1.vhd"), [
    { offset: 64 * KIB, data: pattern(100 * KIB, 3) },
    { offset: 6 * MIB, data: pattern(2 * MIB, 4) },
    { offset: 15 * MIB, data: pattern(SECTOR, 5) },
  ]);
  make("snapshot", "-n", "s2.vhd", "-p", "s1.vhd", "-e");
  make("snapshot", "-n", "s3.vhd", "-p", "base.vhd");
  make("snapshot", "-n", "onraw.vhd", "-p", "raw.img", "-m");
  make("set", "-n", "base.vhd", "-f", "hidden", "-v", "1");
  return () => rmSync(sample, { recursive: true });
});

/** What differs by chance: new UUIDs, the time, and the sums over both. */
function normalised(text: string): string {
  return text
    .replaceAll(/^(UUID|Parent UUID) +: (?!0{8}).*$/gm, "$1 : (some)")
    .replaceAll(/^((?:Parent t|T)imestamp) +: (?!Sat Jan {2}1).*$/gm, "$1 : (now)")
    .replaceAll(/0x[0-9a-f]+\|0x[0-9a-f]+ \(Good!\)/g, "(good)");
}

/** A copy of the sample for each program. */
function copies(): [string, string] {
  // In folders of the same name: paths are printed.
  const folders = [temporaryDirectory(), temporaryDirectory()].map((folder) => join(folder, "sr")) as [string, string];
  for (const folder of folders) cpSync(sample, folder, { recursive: true });
  return folders;
}

function told({ status, stdout }: ToolResult, folder: string): { status: number; stdout: string } {
  return { status, stdout: normalised(stdout.toString("latin1").replaceAll(folder, "/sr")) };
}

/** Both do the same, one after another, and say the same. */
function expectSame(lines: readonly (readonly string[])[], env: NodeJS.ProcessEnv = {}): [string, string] {
  const folders = copies();
  for (const line of lines) {
    const [theirs, ours] = folders.map((folder, index) => {
      const args = line.map((arg) => arg.replaceAll("/sr", folder));
      return told(runIn(folder, index === 0 ? original : builtCommand("vhd-util"), args, { env }), folder);
    });
    expect(ours, line.join(" ")).toEqual(theirs);
  }
  return folders;
}

const words = (line: string) => line.split(" ");

describe("query", () => {
  test.each(["base", "pre", "fixed", "s1", "s2", "s3", "onraw"])("%s.vhd", (name) => {
    expectSame(
      ["-v", "-s", "-p", "-f", "-m", "-d", "-a", "-S", "-pu", "-vspfdSma", "--debug -vsafp", "-vsafpu"].map(
        (options) => ["query", ...words(options), "-n", `${name}.vhd`],
      ),
    );
  });

  test("what can't be answered", () => {
    expectSame(
      ["-v -n nosuch.vhd", "-n raw.img -v", "-v", "-h", "-n base.vhd -q", "-n base.vhd extra", "-n"].map((options) => [
        "query",
        ...words(options),
      ]),
    );
  });
});

describe("read", () => {
  test.each(["base", "pre", "s1", "s2", "onraw"])("the headers of %s.vhd", (name) => {
    expectSame([
      ["read", "-p", "-n", `${name}.vhd`],
      ["read", "--debug", "-p", "-x", "-n", `${name}.vhd`],
    ]);
  });

  test.each([
    "-b 0 -c 3",
    "-b 9",
    "-b 10",
    "-b 60",
    "-t 130 -c 2",
    "-t 40960",
    "-t 40959",
    "-i 126 -c 4",
    "-i 40960",
    "-e 0 -c 40960",
    "-e 8190 -c 4",
    "-j 0 -c 3",
    "-B",
    "-m 0",
    "-m 1",
    "-a",
    "-d 0",
    "-d 2",
    "-r 0 -c 1",
    "-r 100 -c 9000",
    "-C -R 65536 -c 512",
    "-r 999999999 -c 1",
    "-x -b 0 -c 3",
    "-x -t 130",
    "-h",
    "",
  ])("%s", (options) => {
    for (const name of ["base.vhd", "s1.vhd"]) {
      expectSame([["read", "-n", name, ...words(options).filter((word) => word !== "")]]);
    }
  });

  test("through parents, and what is no image", () => {
    expectSame(
      ["-n s2.vhd -r 100 -c 9000", "-n nosuch.vhd -p", "-n raw.img -p", "-n raw.img -b 0"].map((line) => [
        "read",
        ...words(line),
      ]),
    );
  });
});

describe("scan", () => {
  test.each([
    "-m *.vhd",
    "-p -m *.vhd",
    "-p -a -v -m /sr/s2.vhd",
    "-M -c base.vhd s2.vhd",
    "-f base.vhd raw.img s2.vhd",
    "-f -c base.vhd raw.img s2.vhd",
    "-a s2.vhd",
    "-a onraw.vhd",
    "-m zz*",
    "-m /nowhere/zz*",
    "-m {s1,base}.vhd",
    "nosuch.vhd",
    "-f -p -v base.vhd s1.vhd s3.vhd",
    "-v /sr/s2.vhd",
    "-p raw.img s2.vhd",
    "-h",
    "",
  ])("%s", (options) => {
    expectSame([["scan", ...words(options).filter((word) => word !== "")]]);
  });

  test("logical volumes, as lvs and vgs tell of them", () => {
    const programs = temporaryDirectory();
    const [theirs, ours] = copies();
    const pad = MIB;
    // The device mapper's names, which the original can't do without.
    const names = ["vg-VHD--base", "vg-VHD--s1", "vg-VHD--s2"] as const;
    runIn(theirs, original, ["create", "-n", names[0], "-s", "4"]);
    runIn(theirs, original, ["snapshot", "-n", names[1], "-p", names[0], "-e"]);
    runIn(theirs, original, ["snapshot", "-n", names[2], "-p", names[1], "-e"]);
    const device = Buffer.alloc(40 * MIB);
    names.forEach((name, index) => {
      readFileSync(join(theirs, name)).copy(device, pad + index * 12 * MIB);
    });
    for (const folder of [theirs, ours]) writeFileSync(join(folder, "pv"), device);
    const script = (name: string, lines: string) => {
      writeFileSync(join(programs, name), `#!/bin/sh\ncat <<END\n${lines}\nEND\n`);
      chmodSync(join(programs, name), 0o755);
    };
    script("vgs", `  vg 4194304 4 1 pv ${pad}`);
    const extent = 3;
    script(
      "lvs",
      ["VHD-base", "VHD-s1", "VHD-s2"]
        .map((name, index) => `  ${name} ${12 * MIB} linear 1 0 ${12 * MIB} pv(${index * extent})`)
        .concat(`  MGT 4194304 linear 1 0 4194304 pv(9)`)
        .join("\n"),
    );
    const env = { PATH: `${programs}:${process.env.PATH}` };
    for (const line of [
      "-f -l vg -m VHD-*",
      "-l vg -m VHD-base",
      "-f -c -l vg -m *",
      "-f -l vg VHD-base MGT",
      "-f -l none -m *",
    ]) {
      const args = ["scan", ...words(line)];
      const expected = told(runIn(theirs, original, args, { env }), theirs);
      expect(told(runIn(ours, builtCommand("vhd-util"), args, { env }), ours), line).toEqual(expected);
    }
  });
});

describe("changes", () => {
  test.each<[string, string[][]]>([
    [
      "create",
      [
        ["create", "-n", "n.vhd", "-s", "100"],
        ["query", "-n", "n.vhd", "-vspfmdaS"],
        ["read", "-p", "-n", "n.vhd"],
        ["create", "--debug", "-n", "m.vhd", "-s", "99", "-S", "4096"],
        ["query", "-n", "m.vhd", "-vspfmdaS"],
        ["read", "-p", "-n", "m.vhd"],
        ["create", "-n", "f.vhd", "-s", "3", "-r"],
        ["query", "-n", "f.vhd", "-vspfmdS"],
        ["create", "-n", "x.vhd"],
        ["create", "-n", "x.vhd", "-s", "100", "-S", "50"],
        ["create", "-n", "x.vhd", "-s", "100", "-q"],
        ["create", "-n", "no/x.vhd", "-s", "100"],
        ["create", "-h"],
      ],
    ],
    [
      "snapshot",
      [
        ["snapshot", "-n", "n1.vhd", "-p", "base.vhd"],
        ["read", "-p", "-n", "n1.vhd"],
        ["snapshot", "-n", "n2.vhd", "-p", "s2.vhd"],
        ["query", "-n", "n2.vhd", "-vspfmdaS"],
        ["snapshot", "-n", "n3.vhd", "-p", "s2.vhd", "-e", "-S", "4096"],
        ["read", "-p", "-n", "n3.vhd"],
        ["snapshot", "-n", "n4.vhd", "-p", "base.vhd", "-l", "1"],
        ["snapshot", "-n", "n5.vhd", "-p", "s1.vhd", "-l", "3"],
        ["snapshot", "-n", "n6.vhd", "-p", "raw.img", "-m"],
        ["read", "-p", "-n", "n6.vhd"],
        ["snapshot", "-n", "n7.vhd", "-p", "onraw.vhd"],
        ["query", "-n", "n7.vhd", "-vspd"],
        ["snapshot", "-n", "n8.vhd", "-p", "nosuch.vhd"],
        ["snapshot", "-n", "n8.vhd"],
        ["snapshot", "-h"],
      ],
    ],
    [
      "set",
      [
        ["set", "-n", "s1.vhd", "-f", "hidden", "-v", "1"],
        ["query", "-n", "s1.vhd", "-fm"],
        ["read", "-p", "-n", "s1.vhd"],
        ["set", "-n", "s1.vhd", "-f", "foo", "-v", "1"],
        ["set", "-n", "s1.vhd", "-f", "hidden", "-v", "256"],
        ["set", "-n", "s1.vhd", "-f", "hidden"],
        ["set", "-n", "nosuch.vhd", "-f", "hidden", "-v", "1"],
        ["set", "-n", "raw.img", "-f", "hidden", "-v", "1"],
        ["set", "-n", "fixed.vhd", "-f", "hidden", "-v", "1"],
        ["query", "-n", "fixed.vhd", "-f"],
      ],
    ],
    [
      "modify",
      [
        ["modify", "-n", "s2.vhd", "-p", "/sr/base.vhd"],
        ["query", "-n", "s2.vhd", "-p"],
        ["read", "-p", "-n", "s2.vhd"],
        ["modify", "-n", "pre.vhd", "-s", "8388608"],
        ["query", "-n", "pre.vhd", "-s"],
        ["modify", "-n", "s1.vhd", "-z"],
        ["query", "-n", "s1.vhd", "-vspfmda"],
        ["modify", "-n", "nosuch.vhd", "-z"],
        ["modify"],
      ],
    ],
    [
      "coalesce",
      [
        ["coalesce", "-n", "s1.vhd"],
        ["read", "-n", "base.vhd", "-r", "0", "-c", "40960"],
        ["query", "-n", "base.vhd", "-vpa"],
        ["coalesce", "-n", "base.vhd"],
        ["coalesce", "-n", "nosuch.vhd"],
        ["coalesce", "-n", "onraw.vhd"],
        ["coalesce"],
      ],
    ],
    [
      "check",
      [
        ["check", "-n", "base.vhd"],
        ["check", "--debug", "-n", "s2.vhd", "-i", "-B"],
        ["check", "-n", "s2.vhd", "-p"],
        ["check", "-n", "s2.vhd", "-p", "-s"],
        ["check", "-n", "base.vhd", "-b"],
        ["check", "-n", "fixed.vhd"],
        ["check", "-n", "onraw.vhd", "-p"],
        ["check", "-n", "raw.img"],
        ["check", "-n", "nosuch.vhd"],
        ["check", "-n", "/dev"],
        ["check", "-n", "base.vhd", "-B", "-s"],
        ["check", "-h"],
        ["check"],
      ],
    ],
    [
      "resize, repair and fill",
      [
        ["resize", "-n", "pre.vhd", "-s", "200", "-f"],
        ["query", "-n", "pre.vhd", "-vsS"],
        ["resize", "-n", "pre.vhd", "-s", "8192", "-f"],
        ["resize", "-n", "base.vhd", "-s", "4096", "-j", "/sr/j"],
        ["query", "-n", "base.vhd", "-vSa"],
        ["check", "-n", "base.vhd"],
        ["resize", "-n", "base.vhd", "-s", "20", "-j", "/sr/j"],
        ["resize", "-n", "nosuch.vhd", "-s", "20", "-f"],
        ["resize", "-n", "pre.vhd", "-s", "200", "-f", "-j", "/sr/j"],
        ["resize"],
        ["repair", "-n", "base.vhd"],
        ["repair", "-n", "s1.vhd", "-b"],
        ["repair", "-n", "nosuch.vhd"],
        ["repair", "-n", "raw.img"],
        ["repair"],
        ["fill", "-n", "s2.vhd", "-b", "-f", "0", "-t", "4096"],
        ["query", "-n", "s2.vhd", "-a"],
        ["fill", "-n", "s2.vhd", "-f", "1"],
        ["fill", "-n", "nosuch.vhd"],
        ["fill"],
        ["revert", "-n", "base.vhd", "-j", "/sr/nosuch"],
        ["revert"],
      ],
    ],
    [
      "copy and key",
      [
        ["key", "-p", "-n", "base.vhd"],
        ["key", "-p", "-n", "nosuch.vhd"],
        ["key"],
        ["copy", "-n", "base.vhd", "-N", "c.vhd"],
        ["query", "-n", "c.vhd", "-vpda"],
        ["read", "-n", "c.vhd", "-r", "0", "-c", "40960"],
        ["copy", "-n", "base.vhd", "-N", "c.vhd"],
        ["copy", "-n", "nosuch.vhd", "-N", "d.vhd"],
        ["copy"],
      ],
    ],
  ])("%s", (_, lines) => {
    expectSame(lines);
  });
});

test.each(["BEGIN", "DATA_MOVED", "METADATA_MOVED", "END"])(
  "a resize that the original gave up at %s is undone",
  (point) => {
    const [theirs, ours] = copies();
    const before = runIn(theirs, original, ["read", "-n", "base.vhd", "-r", "0", "-c", "40960"]).stdout;
    const resize = ["resize", "-n", "base.vhd", "-s", "204800", "-j", join(theirs, "journal")];
    const failed = runIn(theirs, original, resize, { env: { [`VHD_UTIL_TEST_FAIL_RESIZE_${point}`]: "1" } });
    expect(failed.status).not.toBe(0);
    for (const name of ["base.vhd", "journal"]) cpSync(join(theirs, name), join(ours, name));
    const [expected, got] = [theirs, ours].map((folder, index) => {
      const program = index === 0 ? original : builtCommand("vhd-util");
      return told(runIn(folder, program, ["revert", "-n", "base.vhd", "-j", join(folder, "journal")]), folder);
    });
    expect(got).toEqual(expected);
    for (const folder of [theirs, ours]) {
      expect(runIn(folder, original, ["read", "-n", "base.vhd", "-r", "0", "-c", "40960"]).stdout.equals(before)).toBe(
        true,
      );
      expect(runIn(folder, original, ["check", "-n", "base.vhd"])).toMatchObject({ status: 0 });
      expect(existsSync(join(folder, "journal"))).toBe(false);
    }
  },
);
