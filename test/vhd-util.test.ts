// vhd-util as storage managers call it: command lines, what they look for in the output, and exit statuses (errno values).

import { chmodSync, mkdirSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { MIB, pattern, SECTOR, sha256 } from "./support/data.ts";
import { namedLoopDevice } from "./support/loop.ts";
import { RunningProgram, temporaryDirectory, until } from "./support/run.ts";
import { builtCommand, runIn, type ToolResult, vhdUtilIn, writeDisk } from "./support/tools.ts";

const KIB = 1024;
const BLOCK = 2 * MIB;

type Tool = (...args: string[]) => ToolResult;

/** The text of a command that must be content. */
function said(result: ToolResult): string {
  expect(result).toMatchObject({ status: 0, stderr: "" });
  return result.stdout.toString();
}

interface Repository {
  readonly folder: string;
  readonly vhdUtil: Tool;
  readonly path: (name: string) => string;
}

function repository(): Repository {
  const folder = temporaryDirectory();
  return { folder, vhdUtil: vhdUtilIn(folder), path: (name) => join(folder, name) };
}

/** base (written), a hidden snapshot of it (written), and a leaf. */
async function chain(): Promise<Repository & { content: Buffer }> {
  const made = repository();
  const { vhdUtil, path } = made;
  const content = Buffer.alloc(20 * MIB);
  const write = async (name: string, offset: number, data: Buffer) => {
    await writeDisk(path(name), [{ offset, data }]);
    data.copy(content, offset);
  };
  expect(said(vhdUtil("create", "--debug", "-n", "base.vhd", "-s", "20"))).toBe("");
  await write("base.vhd", 0, pattern(64 * KIB, 1));
  await write("base.vhd", 2 * BLOCK, pattern(BLOCK, 2));
  expect(said(vhdUtil("snapshot", "--debug", "-n", "middle.vhd", "-p", "base.vhd"))).toBe("");
  await write("middle.vhd", 64 * KIB, pattern(100 * KIB, 3));
  await write("middle.vhd", 15 * MIB, pattern(SECTOR, 4));
  expect(said(vhdUtil("set", "--debug", "-n", "middle.vhd", "-f", "hidden", "-v", "1"))).toBe("");
  expect(said(vhdUtil("snapshot", "-n", "leaf.vhd", "-p", path("middle.vhd")))).toBe("");
  await write("leaf.vhd", 16 * MIB, pattern(8 * KIB, 5));
  return { ...made, content };
}

describe("a storage manager", () => {
  test("gets the lines that it looks for", async () => {
    const { vhdUtil, path } = await chain();
    const info = said(vhdUtil("query", "--debug", "-vsafp", "-n", "leaf.vhd")).split("\n");
    expect(info).toHaveLength(6);
    expect(Number(info[0])).toBe(20);
    expect(Number(info[1])).toBe(statSync(path("leaf.vhd")).size);
    expect(info[2]).toBe(path("middle.vhd"));
    expect(/^hidden: (\d+)$/.exec(info[3] ?? "")?.[1]).toBe("0");
    expect(info.slice(4)).toEqual(["1", ""]);
    expect(said(vhdUtil("query", "--debug", "-pu", "-n", "leaf.vhd"))).toBe("./middle.vhd\n");
    expect(said(vhdUtil("query", "--debug", "-p", "-n", "base.vhd"))).toContain("no parent");
    expect(said(vhdUtil("query", "--debug", "-S", "-n", "base.vhd"))).toBe("20\n");
    expect(
      said(vhdUtil("query", "--debug", "-f", "-n", "middle.vhd"))
        .split(":")
        .at(-1)
        ?.trim(),
    ).toBe("1");
    expect(said(vhdUtil("query", "--debug", "-d", "-n", "leaf.vhd"))).toMatch(/^chain depth: 3$/m);
    expect(said(vhdUtil("query", "-m", "-n", "leaf.vhd"))).toBe("marker: 0\n");
    const headers = said(vhdUtil("read", "--debug", "-p", "-n", "leaf.vhd"));
    expect(/Disk type\s+: (\S+) hard disk/.exec(headers)?.[1]).toBe("Differencing");
    const decoded = headers.split("\n").filter((line) => line.includes("decoded name :"));
    expect(decoded.map((line) => line.split(":")[1]?.trim())).toEqual(["./middle.vhd", "./middle.vhd", "./middle.vhd"]);
    expect(said(vhdUtil("key", "-p", "-n", "leaf.vhd"))).toBe("none\n");
  });

  test("scans", async () => {
    const { vhdUtil } = await chain();
    const lines = said(vhdUtil("scan", "-f", "-m", "*.vhd", "-a"))
      .trim()
      .split("\n");
    const images = lines.map((line) => Object.fromEntries(line.split(" ").map((pair) => pair.split("="))));
    expect(images).toEqual([
      { vhd: "base.vhd", capacity: `${20 * MIB}`, size: expect.stringMatching(/^\d+$/), hidden: "0", parent: "none" },
      {
        vhd: "leaf.vhd",
        capacity: `${20 * MIB}`,
        size: expect.stringMatching(/^\d+$/),
        hidden: "0",
        parent: "middle.vhd",
      },
      {
        vhd: "middle.vhd",
        capacity: `${20 * MIB}`,
        size: expect.stringMatching(/^\d+$/),
        hidden: "1",
        parent: "base.vhd",
      },
    ]);
    const pretty = said(vhdUtil("scan", "-p", "-m", "*.vhd"))
      .trimEnd()
      .split("\n");
    expect(pretty.map((line) => /^( *)vhd=(\S+)/.exec(line)?.slice(1))).toEqual([
      ["", "base.vhd"],
      ["   ", "middle.vhd"],
      ["      ", "leaf.vhd"],
    ]);
  });

  test("has a scan go on, or not, where an image is broken", async () => {
    const { vhdUtil, path } = await chain();
    writeFileSync(path("broken.vhd"), pattern(8 * KIB, 1));
    const stopped = vhdUtil("scan", "-f", "-m", "*.vhd");
    expect(stopped.status).toBe(22);
    const error = "vhd=broken.vhd scan-error=-22 error-message='opening file'";
    expect(stopped.stdout.toString().trim().split("\n").at(-1)).toBe(error);
    const whole = vhdUtil("scan", "-f", "-c", "-m", "*.vhd");
    expect(whole.status).toBe(0);
    expect(whole.stdout.toString()).toContain(`${error}\n`);
    expect(whole.stdout.toString().trim().split("\n")).toHaveLength(4);
  });

  test("gets the BAT as a bitmap", async () => {
    const { vhdUtil } = await chain();
    expect(vhdUtil("read", "--debug", "-B", "-n", "base.vhd").stdout).toEqual(Buffer.from([0xa0, 0x00]));
    expect(vhdUtil("read", "--debug", "-B", "-n", "middle.vhd").stdout).toEqual(Buffer.from([0x81, 0x00]));
  });

  test("merges, and hides what it merged", async () => {
    const { vhdUtil, content } = await chain();
    const { stdout } = vhdUtil("coalesce", "--debug", "-n", "middle.vhd");
    // 100 KiB in one place, and a sector in another.
    expect(/^Coalesced (\d+) sectors/.exec(stdout.toString())?.[1]).toBe("201");
    expect(said(vhdUtil("modify", "--debug", "-p", "base.vhd", "-n", "leaf.vhd"))).toBe("");
    expect(said(vhdUtil("query", "-d", "-n", "leaf.vhd"))).toBe("chain depth: 2\n");
    expect(vhdUtil("read", "-r", "0", "-c", "40960", "-n", "leaf.vhd").stdout.equals(content)).toBe(true);
    expect(
      said(vhdUtil("check", "--debug", "-p", "-n", "leaf.vhd"))
        .trim()
        .split("\n"),
    ).toHaveLength(2);
  });

  test("is told by errno values", async () => {
    const { vhdUtil, path } = await chain();
    expect(vhdUtil("query", "-v", "-n", "nosuch.vhd")).toMatchObject({ status: 2 });
    expect(vhdUtil("query", "-v", "-n", "nosuch.vhd").stdout.toString()).toBe("error opening nosuch.vhd: -2\n");
    const deep = vhdUtil("snapshot", "-n", "deep.vhd", "-p", "leaf.vhd", "-l", "3", "-e");
    expect(deep.status).toBe(28);
    expect(deep.stdout.toString()).toBe("snapshot depth exceeded: current depth: 3, limit: 3\n");
    expect(vhdUtil("coalesce", "-n", "base.vhd")).toMatchObject({ status: 22 });
    expect(vhdUtil("key", "-s", "-n", "base.vhd", "-H", "00").status).toBe(95);
    expect(vhdUtil("create", "-n", path("none/x.vhd"), "-s", "20").status).toBe(2);
    expect(vhdUtil("create", "-n", "leaf.vhd", "-s", "20").status).toBe(17);
  });

  test("makes fixed disks, growing ones and children of raw ones", () => {
    const { vhdUtil, path } = repository();
    said(vhdUtil("create", "--debug", "-n", "fixed.vhd", "-s", "3", "-r"));
    // Whole blocks.
    expect(statSync(path("fixed.vhd")).size).toBe(4 * MIB + SECTOR);
    expect(said(vhdUtil("query", "-vS", "-n", "fixed.vhd"))).toBe("4\n0\n");
    said(vhdUtil("create", "--debug", "-n", "grow.vhd", "-s", "20", "-S", "2088960"));
    expect(said(vhdUtil("query", "-vS", "-n", "grow.vhd"))).toBe("20\n2088960\n");
    writeFileSync(path("raw.img"), "");
    truncateSync(path("raw.img"), 20 * MIB);
    said(vhdUtil("snapshot", "-n", "onraw.vhd", "-p", "raw.img", "-m"));
    expect(said(vhdUtil("query", "-pd", "-n", "onraw.vhd"))).toBe(`${path("raw.img")}\nchain depth: 2\n`);
    expect(vhdUtil("create", "-n", "x.vhd", "-s", "100", "-S", "50")).toMatchObject({ status: 22 });
  });

  test("drops data and moves footers", async () => {
    const { vhdUtil, path } = await chain();
    said(vhdUtil("modify", "-s", `${32 * MIB}`, "-n", "leaf.vhd"));
    expect(statSync(path("leaf.vhd")).size).toBe(32 * MIB);
    said(vhdUtil("modify", "--debug", "-z", "-n", "leaf.vhd"));
    expect(said(vhdUtil("query", "-a", "-n", "leaf.vhd"))).toBe("0\n");
  });
});

describe("resizing and repairing", () => {
  test("a disk grows within its metadata, and beyond", async () => {
    const { vhdUtil, path } = await chain();
    const start = vhdUtil("read", "-r", "0", "-c", "40960", "-n", "leaf.vhd").stdout;
    expect(vhdUtil("resize", "--debug", "-s", "40", "-n", "leaf.vhd", "-f").status).toBe(22);
    said(vhdUtil("resize", "--debug", "-s", "4096", "-n", "leaf.vhd", "-j", path("leaf.journal")));
    expect(said(vhdUtil("query", "-vS", "-n", "leaf.vhd"))).toBe("4096\n4096\n");
    expect(vhdUtil("read", "-r", "0", "-c", "40960", "-n", "leaf.vhd").stdout.equals(start)).toBe(true);
    said(vhdUtil("check", "-p", "-n", "leaf.vhd"));
    const smaller = vhdUtil("resize", "-s", "20", "-n", "leaf.vhd", "-j", path("leaf.journal"));
    expect(smaller.status).toBe(38);
    expect(smaller.stdout.toString()).toBe("dynamic shrink not fully implemented\nresize failed: -38\n");
    said(vhdUtil("resize", "--shrink", "-s", "20", "-n", "leaf.vhd", "-j", path("leaf.journal")));
    expect(vhdUtil("read", "-r", "0", "-c", "40960", "-n", "leaf.vhd").stdout.equals(start)).toBe(true);
    said(vhdUtil("create", "-n", "room.vhd", "-s", "20", "-S", "100"));
    said(vhdUtil("resize", "--debug", "-s", "100", "-n", "room.vhd", "-f"));
    expect(said(vhdUtil("query", "-v", "-n", "room.vhd"))).toBe("100\n");
    expect(vhdUtil("resize", "-s", "100", "-n", "room.vhd").status).toBe(22);
    expect(vhdUtil("resize", "-s", "100", "-n", "none.vhd", "-f").status).toBe(2);
  });

  test("a footer that was lost comes back", async () => {
    const { vhdUtil, path } = await chain();
    const size = statSync(path("leaf.vhd")).size;
    truncateSync(path("leaf.vhd"), size - SECTOR);
    expect(vhdUtil("check", "-n", "leaf.vhd").status).toBe(22);
    said(vhdUtil("repair", "-n", "leaf.vhd"));
    said(vhdUtil("check", "-n", "leaf.vhd"));
    expect(statSync(path("leaf.vhd")).size).toBe(size);
    said(vhdUtil("repair", "-b", "-n", "leaf.vhd"));
    const none = vhdUtil("repair", "-n", "none.vhd");
    expect([none.status, none.stdout.toString()]).toEqual([2, "error opening none.vhd: -2\n"]);
  });
});

describe("reverting", () => {
  test("does nothing with a journal that was never written", async () => {
    const { vhdUtil, path } = await chain();
    const before = sha256(readFileSync(path("leaf.vhd")));
    writeFileSync(path("journal"), Buffer.alloc(MIB));
    expect(vhdUtil("revert", "--debug", "-n", "leaf.vhd", "-j", "journal")).toMatchObject({ status: 0 });
    writeFileSync(path("journal"), pattern(MIB, 1));
    const junk = vhdUtil("revert", "-n", "leaf.vhd", "-j", "journal");
    expect([junk.status, junk.stdout.toString()]).toEqual([22, "reverting journal failed: -22\n"]);
    const none = vhdUtil("revert", "-n", "leaf.vhd", "-j", "none");
    expect([none.status, none.stdout.toString()]).toEqual([2, "opening journal failed: -2\n"]);
    expect(sha256(readFileSync(path("leaf.vhd")))).toBe(before);
  });
});

describe("filling", () => {
  test("allocates all blocks and changes nothing else", async () => {
    const { vhdUtil, content } = await chain();
    const reads = () => vhdUtil("read", "-r", "0", "-c", "40960", "-n", "leaf.vhd").stdout.equals(content);
    said(vhdUtil("fill", "-b", "-f", "0", "-t", "8191", "-n", "leaf.vhd"));
    // The block that was there, and the first two.
    expect(said(vhdUtil("query", "-a", "-n", "leaf.vhd"))).toBe("3\n");
    expect(reads()).toBe(true);
    said(vhdUtil("fill", "-n", "leaf.vhd"));
    expect(said(vhdUtil("query", "-a", "-n", "leaf.vhd"))).toBe("10\n");
    expect(said(vhdUtil("read", "-e", "0", "-c", "40960", "-n", "leaf.vhd"))).toBe("0 40960\n");
    expect(reads()).toBe(true);
    said(vhdUtil("check", "-n", "leaf.vhd"));
  });

  test.each([["-f", "1"], ["-B"], ["-b", "-f", "9", "-t", "1"]])("refuses %s %s", (...options) => {
    expect(repository().vhdUtil("fill", "-n", "x.vhd", ...options).status).toBe(22);
  });
});

describe("command lines", () => {
  test.each([
    ["query", 22, "options: <-n name> [-v print virtual size (in MB)]"],
    ["create", 22, "options: <-n name> <-s size (MB)>"],
    ["set", 22, "options: <-n name> <-f field> <-v value>"],
    ["read", 22, "options:\n-h          help\n"],
    ["scan", 22, "usage: [OPTIONS] FILES\n"],
    ["snapshot", 22, "options: <-n name> <-p parent name>"],
    ["modify", 22, "*** Dangerous operations, use with care ***\n"],
    ["check", 22, "options: -n <file>"],
    ["coalesce", 22, "options: <-n name> [-s sparse]"],
  ])("%s without anything ends with %i and its usage", (command, status, usage) => {
    const result = repository().vhdUtil(command);
    expect(result.status).toBe(status);
    expect(result.stdout.toString().startsWith(usage)).toBe(true);
  });

  test("help, version and what there isn't", () => {
    const { vhdUtil } = repository();
    expect(said(vhdUtil("--help"))).toMatch(/Commands:[\s\S]*Examples:/);
    expect(said(vhdUtil("query", "--help"))).toMatch(/-v +the virtual size[\s\S]*Examples:/);
    expect(said(vhdUtil("--version"))).toMatch(/^vhd-util \(tapvhd\) \d/);
    const bogus = vhdUtil("bogus");
    expect(bogus).toMatchObject({ status: 0, stderr: expect.stringMatching(/^invalid COMMAND bogus\n/) });
    expect(bogus.stdout.toString()).toMatch(
      /^usage: vhd-util COMMAND \[OPTIONS\]\nCOMMAND := \{ create \| snapshot \| query/,
    );
    expect(vhdUtil("set", "-n", "x", "-f", "foo", "-v", "1").stdout.toString()).toMatch(/^invalid field foo\noptions/);
  });

  test.each(["with space.vhd", "-dash.vhd", "new\nline.vhd", "$(touch x).vhd", "ümläut 漢字.vhd", "per%20cent.vhd"])(
    "a name like %j is only a name",
    (name) => {
      const { vhdUtil, path } = repository();
      said(vhdUtil("create", "-n", name, "-s", "20"));
      said(vhdUtil("snapshot", "-n", "child.vhd", "-p", name, "-e"));
      expect(said(vhdUtil("query", "-p", "-n", "child.vhd"))).toBe(`${path(name)}\n`);
      expect(said(vhdUtil("query", "-d", "-n", "child.vhd"))).toBe("chain depth: 2\n");
      const tree = said(vhdUtil("tree", "--ascii"));
      expect(tree.split("\n").filter((line) => line !== "")).toHaveLength(2);
    },
  );
});

describe("broken images", () => {
  test("are told of clearly, and left as they are", async () => {
    const { vhdUtil, path } = await chain();
    const file = readFileSync(path("base.vhd"));
    for (const at of [512 + 20, file.length - SECTOR + 40, 40]) file[at] = (file[at] ?? 0) ^ 0xff;
    writeFileSync(path("base.vhd"), file);
    const sums = () => ["base.vhd", "middle.vhd", "leaf.vhd"].map((name) => sha256(readFileSync(path(name))));
    const before = sums();
    for (const args of [
      ["query", "-v", "-n", "base.vhd"],
      ["set", "-n", "base.vhd", "-f", "hidden", "-v", "1"],
      ["modify", "-z", "-n", "base.vhd"],
      ["coalesce", "-n", "middle.vhd"],
      ["snapshot", "-n", "new.vhd", "-p", "leaf.vhd"],
      ["read", "-r", "0", "-n", "leaf.vhd"],
      ["copy", "-n", "leaf.vhd", "-N", "new.vhd"],
    ]) {
      const { status, stderr } = vhdUtil(...args);
      expect([22, 5], args.join(" ")).toContain(status);
      expect(stderr, args.join(" ")).toMatch(/base\.vhd: .*(footer|header)/);
    }
    expect(sums()).toEqual(before);
    expect(() => statSync(path("new.vhd"))).toThrow();
  });

  test("still show their headers", async () => {
    const { vhdUtil, path } = await chain();
    truncateSync(path("base.vhd"), 3 * BLOCK);
    const file = readFileSync(path("base.vhd"));
    file[40] = (file[40] ?? 0) ^ 1;
    writeFileSync(path("base.vhd"), file);
    const { status, stdout } = vhdUtil("check", "-n", "base.vhd");
    expect(status).toBe(22);
    expect(stdout.toString()).toMatch(/base\.vhd appears invalid; dumping metadata\n[\s\S]*VHD Footer Summary:\n/);
  });
});

describe("disks in use", () => {
  test("are not changed while a tapdisk writes them, though it takes no locks", async () => {
    const { folder, vhdUtil, path } = await chain();
    const script = path("tapdisk");
    writeFileSync(script, '#!/bin/sh\nexec 3<>"$1" 4<"$2"\necho ready\nread end <&1\n');
    chmodSync(script, 0o755);
    const holder = new RunningProgram(script, [path("leaf.vhd"), path("middle.vhd")], { cwd: folder });
    await holder.firstLine(10);
    const { status, stderr } = vhdUtil("set", "-n", "leaf.vhd", "-f", "hidden", "-v", "1");
    expect(status).toBe(16);
    expect(stderr).toContain("in use by tapdisk");
    // What it reads as a parent may change, as when it is merged.
    said(vhdUtil("set", "-n", "middle.vhd", "-f", "marker", "-v", "1"));
    holder.signal("SIGKILL");
    await holder.outcome(10);
    said(vhdUtil("set", "-n", "leaf.vhd", "-f", "hidden", "-v", "1"));
  });
});

describe("more than the original", () => {
  test("tells everything in JSON", async () => {
    const { vhdUtil, path } = await chain();
    expect(JSON.parse(said(vhdUtil("query", "--json", "-n", "leaf.vhd")))).toMatchObject({
      type: "differencing",
      virtualSize: 20 * MIB,
      parent: path("middle.vhd"),
      depth: 3,
      allocatedBlocks: 1,
      problems: [],
    });
    const [first] = said(vhdUtil("scan", "--json", "-m", "*.vhd")).split("\n");
    expect(JSON.parse(first ?? "")).toMatchObject({ name: "base.vhd", capacity: 20 * MIB, parent: null });
    expect(JSON.parse(said(vhdUtil("read", "--json", "-n", "leaf.vhd"))).header.blockSize).toBe(BLOCK);
    expect(JSON.parse(said(vhdUtil("check", "--json", "-n", "leaf.vhd")))).toMatchObject({ valid: true });
  });

  test("maps disks as extents, text and pictures", async () => {
    const { vhdUtil, path } = await chain();
    const extents = said(vhdUtil("map", "--json", "-n", "leaf.vhd"));
    const owned = extents
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { offset: number; length: number; level: number | null });
    expect(owned.reduce((sum, { length }) => sum + length, 0)).toBe(20 * MIB);
    expect(owned.find(({ level }) => level === 0)).toMatchObject({ offset: 16 * MIB, length: 8 * KIB });
    const text = said(vhdUtil("map", "-n", "leaf.vhd", "--columns", "10", "--rows", "1"));
    // A cell is a block: base has blocks 0 (written over in part by the middle) and 2.
    expect(text.split("\n")[0]).toBe("1.2....10.");
    said(vhdUtil("map", "-n", "leaf.vhd", "--svg", "map.svg", "--png", "map.png"));
    expect(readFileSync(path("map.svg"), "utf8")).toMatch(/^<svg xmlns="http:\/\/www.w3.org\/2000\/svg" width="512"/);
    expect(readFileSync(path("map.png")).subarray(1, 4).toString()).toBe("PNG");
    expect(vhdUtil("map", "-n", "leaf.vhd", "--png", "-").stdout.equals(readFileSync(path("map.png")))).toBe(true);
  });

  test("lists what changed since a point of the chain", async () => {
    const { vhdUtil } = await chain();
    const own = `${(16 * MIB) / SECTOR} 16\n`;
    expect(said(vhdUtil("diff", "-n", "leaf.vhd"))).toBe(own);
    const since = said(vhdUtil("diff", "-n", "leaf.vhd", "-p", "base.vhd"));
    expect(since).toBe(`128 200\n${(15 * MIB) / SECTOR} 1\n${own}`);
    expect(vhdUtil("diff", "-n", "base.vhd", "-p", "leaf.vhd")).toMatchObject({ status: 22 });
  });

  test("draws folders as forests", async () => {
    const { folder, vhdUtil, path } = await chain();
    mkdirSync(path("sub"));
    writeFileSync(path("broken.vhd"), "nothing");
    const drawn = (args: string[], env: NodeJS.ProcessEnv) =>
      runIn(folder, builtCommand("vhd-util"), ["tree", ...args], { env }).stdout.toString();
    const unicode = drawn([], { LC_ALL: "C.UTF-8" });
    expect(unicode).toMatch(
      /^base\.vhd \(dynamic, 20 MiB, .* on disk\)\n└─ middle\.vhd \(.*hidden\)\n {3}└─ leaf\.vhd /m,
    );
    expect(unicode).toMatch(/^broken\.vhd\n! .*footer/m);
    expect(unicode).not.toContain("\u001b");
    expect(drawn(["--ascii", path("leaf.vhd")], {})).toMatch(/leaf\.vhd .* on middle\.vhd\n/);
    const [, base] = JSON.parse(said(vhdUtil("tree", "--json"))) as { children: unknown[] }[];
    expect([base?.children.length, unicode.split("\n").length]).toEqual([0, 6]);
  });

  test("colours what goes to a terminal, unless NO_COLOR is set", async () => {
    const { folder } = await chain();
    const onTerminal = (env: NodeJS.ProcessEnv) => {
      const command = `'${builtCommand("vhd-util")}' tree --ascii`;
      // Node takes a terminal that a continuous integration gives for one without colours.
      const all = { NO_COLOR: undefined, FORCE_COLOR: undefined, CI: undefined, TERM: "xterm", ...env };
      return runIn(folder, "script", ["-qec", command, "/dev/null"], { env: all }).stdout.toString();
    };
    expect(onTerminal({})).toContain("\u001b[1mbase.vhd");
    expect(onTerminal({ NO_COLOR: "1" })).not.toContain("\u001b");
  });

  test("flattens chains", async () => {
    const { vhdUtil, content } = await chain();
    said(vhdUtil("copy", "-n", "leaf.vhd", "-N", "whole.vhd"));
    expect(said(vhdUtil("query", "-pd", "-n", "whole.vhd"))).toBe("whole.vhd has no parent\nchain depth: 1\n");
    expect(vhdUtil("read", "-r", "0", "-c", "40960", "-n", "whole.vhd").stdout.equals(content)).toBe(true);
    const again = vhdUtil("copy", "-n", "leaf.vhd", "-N", "whole.vhd");
    expect(again.status).toBe(22);
    expect(again.stdout.toString()).toBe("VHD file whole.vhd already exists, chose a different name\n");
  });

  test("converts between formats", async () => {
    const { folder, vhdUtil, path, content } = await chain();
    for (const [to, name] of [
      ["raw", "a.img"],
      ["fixed", "b.vhd"],
      ["dynamic", "c.vhd"],
    ] as const) {
      said(vhdUtil("convert", "--to", to, "leaf.vhd", name));
      said(vhdUtil("convert", ...(to === "raw" ? ["--from", "raw"] : []), "--to", "raw", name, `${name}.raw`));
      expect(readFileSync(path(`${name}.raw`)).equals(content), to).toBe(true);
      if (to !== "raw") {
        const compared = ["compare", "-f", "raw", "-F", "vpc", `${name}.raw`, name];
        expect(runIn(folder, "qemu-img", compared), to).toMatchObject({ status: 0 });
      }
    }
    // No zeros were written.
    expect(statSync(path("a.img")).blocks * 512).toBeLessThan(4 * MIB);
    expect(vhdUtil("convert", "--to", "raw", "leaf.vhd", "a.img").status).toBe(17);
    expect(readFileSync(path("a.img")).equals(content)).toBe(true);
  });

  test("converts to and from pipes", async () => {
    const { folder, vhdUtil, path, content } = await chain();
    expect(vhdUtil("convert", "--to", "raw", "leaf.vhd", "-").stdout.equals(content)).toBe(true);
    for (const to of ["fixed", "dynamic"]) {
      writeFileSync(path("piped.vhd"), vhdUtil("convert", "--to", to, "leaf.vhd", "-").stdout);
      said(vhdUtil("check", "-b", "-n", "piped.vhd"));
      const read = vhdUtil("read", "-r", "0", "-c", "40960", "-n", "piped.vhd");
      if (to === "dynamic") expect(read.stdout.equals(content)).toBe(true);
      said(vhdUtil("convert", "--to", "raw", "piped.vhd", `${to}.raw`));
      expect(readFileSync(path(`${to}.raw`)).equals(content)).toBe(true);
    }
    const program = builtCommand("vhd-util");
    const input = (args: string[], bytes: Buffer) => runIn(folder, program, ["convert", ...args], { input: bytes });
    said(input(["--size", "20M", "-", "in.vhd"], content));
    expect(vhdUtil("read", "-r", "0", "-c", "40960", "-n", "in.vhd").stdout.equals(content)).toBe(true);
    const sent = readFileSync(path("piped.vhd"));
    said(input(["--from", "vhd", "--to", "raw", "-", "in.raw"], sent));
    expect(readFileSync(path("in.raw")).equals(content)).toBe(true);
    const through = input(["--from", "vhd", "--to", "raw", "-", "-"], sent);
    expect(through.stdout.equals(content)).toBe(true);
    expect(input(["--from", "vhd", "-", "in2.vhd"], sent.subarray(0, 9000)).status).not.toBe(0);
    expect(readdirSync(folder).filter((name) => name.startsWith("."))).toEqual([]);
    expect(input(["--size", "19M", "-", "in2.vhd"], content)).toMatchObject({ status: 22 });
    expect(input(["--size", "21M", "-", "in2.vhd"], content)).toMatchObject({ status: 22 });
    expect(input(["-", "in2.vhd"], content)).toMatchObject({ status: 22 });
    expect(() => statSync(path("in2.vhd"))).toThrow();
  });

  test("leaves nothing behind when a conversion is interrupted, or fails", async () => {
    const { folder, vhdUtil, path } = repository();
    said(vhdUtil("create", "-n", "a.vhd", "-s", "4"));
    runIn(folder, "mkfifo", ["pipe"]);
    const convert = (options: string) =>
      new RunningProgram("bash", ["-c", `exec "${builtCommand("vhd-util")}" convert ${options} <> pipe`], {
        cwd: folder,
      });
    const left = () => readdirSync(folder).filter((name) => name !== "pipe" && name !== "a.vhd");
    for (const options of ["--size 20M - b.vhd", "--size 20M --to raw - b.img", "--from vhd - b.vhd"]) {
      const running = convert(options);
      await until("it has begun", () => left().length > 0);
      running.signal("SIGINT");
      expect(await running.outcome(10), options).toMatchObject({
        status: 130,
        stderr: "vhd-util convert: interrupted\n",
      });
      expect(left(), options).toEqual([]);
    }
    expect((await convert("--size 1024T --to raw - huge.img").outcome(10)).status).toBe(27);
    expect(left()).toEqual([]);
    writeFileSync(path("odd.img"), Buffer.alloc(1000, 1));
    for (const target of ["-", "b.vhd"]) {
      const { status, stderr, stdout } = vhdUtil("convert", "--from", "raw", "odd.img", target);
      expect(status).toBe(22);
      expect(stderr).toMatch(
        /odd\.img: raw image: its last 488 bytes .*: found 1000 bytes, expected a multiple of 512/,
      );
      expect(stdout.length).toBe(0);
    }
    expect(left()).toEqual(["odd.img"]);
  });

  test("a block device stays when what it shall hold doesn't come", async ({ skip }) => {
    const { folder, vhdUtil, path } = repository();
    writeFileSync(path("back.img"), Buffer.alloc(20 * MIB));
    const named = await namedLoopDevice(path("back.img"), path("device"));
    if (named === undefined) return skip("loop devices are not permitted here");
    const input = pattern(MIB, 1);
    const { status, stderr } = runIn(
      folder,
      builtCommand("vhd-util"),
      ["convert", "--from", "raw", "--size", "4M", "-", named],
      { input },
    );
    expect(status).toBe(22);
    expect(stderr).toMatch(/only 1048576 bytes came, but --size is 4194304; what .*device has now is incomplete/);
    expect(statSync(named).isBlockDevice()).toBe(true);
    expect(vhdUtil("query", "-v", "-n", named).status).toBe(0);
  });

  test("ends quietly when nobody reads on", async () => {
    const { folder } = await chain();
    const program = builtCommand("vhd-util");
    const piped = `set -o pipefail; "${program}" read -r 0 -c 40960 -n leaf.vhd | head -c 10 | wc -c; echo \${PIPESTATUS[0]}`;
    const { stdout, stderr } = runIn(folder, "bash", ["-c", piped]);
    expect(stderr).toBe("");
    expect(stdout.toString()).toMatch(/^10\n/);
  });
});
