// Malformed files: a clear error that says where, exit status 1, no crash, and the file as it was. Every case goes through
// the engine as WebAssembly; those that are marked go through the whole program as well.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { expectSame, sha256 } from "./support/data.ts";
import { readThrough } from "./support/images.ts";
import { MemoryFile, MemoryHost } from "./support/memory-host.ts";
import { temporaryDirectory } from "./support/run.ts";
import { refused, serve } from "./support/tapdisk.ts";
import {
  FOOTER_BYTES,
  fixedImage,
  footerFields,
  HEADER_BYTES,
  headerFields,
  image,
  places,
  sealFooter,
  sealHeader,
} from "./support/vhd-image.ts";

const BLOCK = 16 * 1024;
const BLOCKS = 6;
const SIZE = BLOCK * BLOCKS;
/** A bitmap and a block, in sectors. */
const SPAN = 1 + BLOCK / 512;
const FIRST_BLOCK = (places.table + 512) / 512;
const ALLOCATED = [4, 0, 2];

const disk = Buffer.alloc(SIZE);
const good = image(
  {
    size: SIZE,
    blockSize: BLOCK,
    blocks: ALLOCATED.map((block) => ({ block, present: (sector) => sector % 3 !== 2 })),
    fill: (sector) => 1 + (sector % 250),
  },
  disk,
);
const FOOTER = good.length - FOOTER_BYTES;
const DATA_END = FOOTER;

/** Changes a copy of a good image. */
function damaged(change: (file: Buffer) => void, from: Buffer = good): Buffer {
  const file = Buffer.from(from);
  change(file);
  return file;
}

/** Changes both footers, and makes their checksums right. */
function withFooters(change: (footer: Buffer) => void): Buffer {
  return damaged((file) => {
    for (const at of [places.backupFooter, FOOTER]) {
      const footer = file.subarray(at, at + FOOTER_BYTES);
      change(footer);
      sealFooter(footer);
    }
  });
}

/** Changes the header, and makes its checksum right. */
function withHeader(change: (header: Buffer) => void): Buffer {
  return damaged((file) => {
    const header = file.subarray(places.header, places.header + HEADER_BYTES);
    change(header);
    sealHeader(header);
  });
}

function withEntry(block: number, sector: number): Buffer {
  return damaged((file) => {
    file.writeUInt32BE(sector, places.table + block * 4);
  });
}

const PATH = "/somewhere/disk.vhd";

/** Opens a file with the engine; it must be left alone. Yields what the engine says, and what the disk looks like. */
function openWithEngine(file: Buffer): { error: string } | { warnings: string[]; content: "right" | "wrong" } {
  const memory = new MemoryFile(file);
  const host = new MemoryHost({ [PATH]: memory }, 1 << 16);
  try {
    const { sectors, warnings } = host.open(PATH);
    expect(sectors).toBeLessThanOrEqual(SIZE / 512);
    return { warnings, content: disk.equals(host.readDisk(sectors)) ? "right" : "wrong" };
  } catch (error) {
    if (!(error instanceof Error) || error.name !== "JobError") throw error;
    return { error: error.message };
  } finally {
    expect(memory.changes).toBe(0);
    expectSame(memory.content, file, "the file");
    host.free();
  }
}

/** What a good error says. */
interface Complaint {
  readonly structure: string;
  readonly offset: number | bigint;
  /** Something that is said of what was found. */
  readonly found?: string;
}

function expectComplaint(message: string, path: string, { structure, offset, found = "" }: Complaint): void {
  const place = `at offset ${offset} (0x${offset.toString(16)})`;
  expect(message.startsWith(`${path}: ${structure}: `), message).toBe(true);
  expect(message).toContain(place);
  expect(message).toMatch(/: found .+, expected .+$/);
  expect(message.slice(message.indexOf(": found "))).toContain(found);
}

interface Case extends Complaint {
  readonly what: string;
  readonly file: Buffer;
  /** Goes through the whole program too. */
  readonly program?: boolean;
}

const huge = 0x7fff_ffff_ffff_fe00n;
const footerAt = (field: keyof typeof footerFields) => FOOTER + footerFields[field][0];
const headerAt = (field: keyof typeof headerFields) => places.header + headerFields[field][0];
const entryAt = (block: number) => places.table + block * 4;

/** In the footers, with right checksums. */
const badFooters: Case[] = [
  {
    what: "another cookie",
    file: withFooters((footer) => footer.write("conectiX", 0)),
    structure: "footer",
    offset: footerAt("cookie"),
    found: "conectiX",
    program: true,
  },
  {
    what: "a format of the future",
    file: withFooters((footer) => footer.writeUInt32BE(0x20000, 12)),
    structure: "footer",
    offset: footerAt("formatVersion"),
    found: "0x20000",
    program: true,
  },
  ...[0n, 511n, 513n, 0xffff_ffff_ffff_ffffn].map((offset) => ({
    what: `a header at ${offset}`,
    file: withFooters((footer) => footer.writeBigUInt64BE(offset, 16)),
    structure: "footer",
    offset: footerAt("dataOffset"),
    found: String(offset),
  })),
  ...[BigInt(FOOTER), BigInt(FOOTER + 512), huge].map((offset) => ({
    what: `a header behind the data, at ${offset}`,
    file: withFooters((footer) => footer.writeBigUInt64BE(offset, 16)),
    structure: "dynamic header",
    offset,
  })),
  ...[0n, 1n, 513n, 0xffff_ffff_ffff_fe00n].map((size) => ({
    what: `a size of ${size}`,
    file: withFooters((footer) => footer.writeBigUInt64BE(size, 48)),
    structure: "footer",
    offset: footerAt("currentSize"),
    found: String(size),
    program: size === 0n,
  })),
  {
    what: "a size that no table can have blocks for",
    file: withFooters((footer) => footer.writeBigUInt64BE(1n << 60n, 48)),
    structure: "footer",
    offset: 48,
    found: String(1n << 60n),
    program: true,
  },
  ...[0, 1, 5, 6, 0xffff_ffff].map((type) => ({
    what: `disk type ${type}`,
    file: withFooters((footer) => footer.writeUInt32BE(type, 60)),
    structure: "footer",
    offset: footerAt("diskType"),
    found: String(type),
    program: type === 5,
  })),
];

/** In the header, with a right checksum. */
const badHeaders: Case[] = [
  {
    what: "another cookie",
    file: withHeader((header) => header.write("cxsparsE", 0)),
    structure: "dynamic header",
    offset: headerAt("cookie"),
    found: "cxsparsE",
    program: true,
  },
  ...[0n, 511n, 513n, 0xffff_ffff_ffff_ffffn].map((offset) => ({
    what: `a table at ${offset}`,
    file: withHeader((header) => header.writeBigUInt64BE(offset, 16)),
    structure: "dynamic header",
    offset: headerAt("tableOffset"),
    found: String(offset),
  })),
  ...[512n, 1024n].map((offset) => ({
    what: `a table on top of the header, at ${offset}`,
    file: withHeader((header) => header.writeBigUInt64BE(offset, 16)),
    structure: "dynamic header",
    offset: headerAt("tableOffset"),
    found: String(offset),
    program: offset === 512n,
  })),
  ...[BigInt(FOOTER), huge].map((offset) => ({
    what: `a table behind the data, at ${offset}`,
    file: withHeader((header) => header.writeBigUInt64BE(offset, 16)),
    structure: "BAT",
    offset,
    program: offset === huge,
  })),
  {
    what: "another version",
    file: withHeader((header) => header.writeUInt32BE(0x10001, 24)),
    structure: "dynamic header",
    offset: headerAt("headerVersion"),
    found: "0x10001",
    program: true,
  },
  ...[0, BLOCKS - 1].map((entries) => ({
    what: `${entries} entries in the table, too few for the disk`,
    file: withHeader((header) => header.writeUInt32BE(entries, 28)),
    structure: "dynamic header",
    offset: headerAt("maxTableEntries"),
    found: String(entries),
    program: entries === 0,
  })),
  ...[0, 1, 511, 512, 3 * 4096, 0x8000_0000, 0xffff_ffff].map((size) => ({
    what: `blocks of ${size} bytes`,
    file: withHeader((header) => header.writeUInt32BE(size, 32)),
    structure: "dynamic header",
    offset: headerAt("blockSize"),
    found: String(size),
    program: size === 0,
  })),
];

/** In the block allocation table. Blocks 4, 0 and 2 are in the file, in this order. */
const badTables: Case[] = [
  ...[0, 1, 2, FIRST_BLOCK - 1].map((sector) => ({
    what: `a block on top of the metadata, in sector ${sector}`,
    file: withEntry(3, sector),
    structure: "BAT",
    offset: entryAt(3),
    found: `sector ${sector}`,
    program: sector === 1,
  })),
  ...[DATA_END / 512 - SPAN + 1, DATA_END / 512, DATA_END / 512 + 1, 0x7fff_ffff, 0xffff_fffe].map((sector) => ({
    what: `a block that is not all in the file, in sector ${sector}`,
    file: withEntry(2, sector),
    structure: "BAT",
    offset: entryAt(2),
    found: `sector ${sector}`,
    program: sector === 0xffff_fffe,
  })),
  {
    what: "two blocks in one place",
    file: withEntry(2, FIRST_BLOCK + SPAN),
    structure: "BAT",
    offset: entryAt(2),
    program: true,
  },
  {
    what: "a block that begins within another",
    file: withEntry(2, FIRST_BLOCK + SPAN + 3),
    structure: "BAT",
    offset: entryAt(2),
    found: `sector ${FIRST_BLOCK + SPAN + 3}`,
    program: true,
  },
];

const wrong = [
  ["footer", badFooters],
  ["header", badHeaders],
  ["table", badTables],
] as const;

test("the image that all this begins with is good", () => {
  expect(openWithEngine(good)).toEqual({ warnings: [], content: "right" });
});

describe.each(wrong)("a file with a wrong %s", (_name, cases) => {
  test.each(cases)("is refused by the engine: $what", ({ file, ...complaint }) => {
    const outcome = openWithEngine(file);
    expectComplaint("error" in outcome ? outcome.error : "it was opened", PATH, complaint);
  });

  test.each(cases.filter(({ program }) => program))("is refused by tapdisk: $what", async ({ file, ...complaint }) => {
    const path = join(temporaryDirectory(), "disk.vhd");
    writeFileSync(path, file);
    const { stderr } = await refused(`vhd:${path}`);
    expect(stderr).toMatch(/^tapdisk: [^\n]+\n$/);
    expectComplaint(stderr.slice("tapdisk: ".length).trimEnd(), path, complaint);
    expect(sha256(readFileSync(path))).toBe(sha256(file));
  });
});

/** Flips a bit in the middle of a field. */
function flipped(file: Buffer, structure: number, [offset, length]: readonly [number, number]): Buffer {
  return damaged((copy) => {
    const at = structure + offset + (length >> 1);
    copy[at] = (copy[at] ?? 0) ^ 0x20;
  }, file);
}

describe("a file that was damaged so that a checksum is wrong", () => {
  test.each(Object.entries(footerFields))("opens by its other footer, and not without any: %s", (_name, field) => {
    const primary = flipped(good, FOOTER, field);
    expect(openWithEngine(primary)).toMatchObject({
      warnings: [
        expect.stringMatching(/^primary footer: .+ at offset \d+ .+: found .+, expected .+; using the backup/),
      ],
      content: "right",
    });
    const backup = flipped(good, places.backupFooter, field);
    expect(openWithEngine(backup)).toMatchObject({
      warnings: [expect.stringMatching(/^backup footer: .+ at offset \d+ .+: found .+, expected .+/)],
      content: "right",
    });
    const both = openWithEngine(flipped(primary, places.backupFooter, field));
    expect(both).toMatchObject({ error: expect.stringMatching(/footer: .+ at offset \d+ .+: found .+, expected .+$/) });
    const [, offset] = /at offset (\d+) /.exec("error" in both ? both.error : "") ?? [];
    expect(Number(offset)).toBeGreaterThanOrEqual(FOOTER);
  });

  test.each(Object.entries(headerFields))("does not open with a damaged header: %s", (_name, field) => {
    expect(openWithEngine(flipped(good, places.header, field))).toMatchObject({
      error: expect.stringMatching(/: dynamic header: .+ at offset \d+ .+: found .+, expected .+$/),
    });
  });

  test("is served by tapdisk for reading, with a warning", async () => {
    const path = join(temporaryDirectory(), "disk.vhd");
    const file = flipped(good, FOOTER, footerFields.checksum);
    writeFileSync(path, file);
    const tapdisk = await serve(`vhd:${path}`, "--read-only");
    expectSame(await readThrough(tapdisk), disk, "the disk");
    tapdisk.program.signal("SIGTERM");
    const { status, stderr } = await tapdisk.program.outcome(20);
    expect(status).toBe(0);
    expect(stderr).toMatch(
      /^tapdisk: warning: primary footer: wrong checksum at offset \d+ .+; using the backup footer\n$/,
    );
    expect(sha256(readFileSync(path))).toBe(sha256(file));
  });
});

describe("a field that only informs may hold anything", () => {
  const harmless: [string, Buffer][] = [
    ["features", withFooters((footer) => footer.writeUInt32BE(0, 8))],
    ["time stamp", withFooters((footer) => footer.writeUInt32BE(0xffff_ffff, 24))],
    ["creator", withFooters((footer) => footer.fill(0xff, 28, 40))],
    ["original size", withFooters((footer) => footer.writeBigUInt64BE(1n, 40))],
    ["geometry", withFooters((footer) => footer.fill(0, 56, 60))],
    ["UUID", withFooters((footer) => footer.fill(0, 68, 84))],
    ["reserved bytes of the footer", withFooters((footer) => footer.fill(0xaa, 100, 500))],
    ["the header's next structure", withHeader((header) => header.writeBigUInt64BE(0n, 8))],
    ["a parent of a disk that has none", withHeader((header) => header.fill(0x41, 40, 576))],
    ["reserved bytes of the header", withHeader((header) => header.fill(0xaa, 768, 1024))],
  ];
  test.each(harmless)("%s", (_name, file) => {
    expect(openWithEngine(file)).toMatchObject({ content: "right" });
  });
});

describe("a file that was cut", () => {
  const edges = [
    ...[0, 1, 510, 511, 512, 1023, 1535, places.table, places.table + 4, places.table + 511],
    ...[0, 1, 2].flatMap((index) => {
      const bitmap = (FIRST_BLOCK + index * SPAN) * 512;
      return [bitmap - 512, bitmap, bitmap + 1, bitmap + 511, bitmap + 512, bitmap + 512 + BLOCK / 2];
    }),
    DATA_END - 1,
  ];
  test.each([...new Set(edges)].sort((a, b) => a - b))("within or before its data, after %i bytes", (length) => {
    expect(openWithEngine(good.subarray(0, length))).toMatchObject({
      error: expect.stringMatching(
        /^\/somewhere\/disk\.vhd: (file|footer|dynamic header|BAT): .+: found .+, expected .+$/,
      ),
    });
  });

  test.each([DATA_END, DATA_END + 1, DATA_END + 500])("behind its data, after %i bytes", (length) => {
    expect(openWithEngine(good.subarray(0, length))).toMatchObject({ content: "right" });
  });

  test.each([1000, places.table + 100, FIRST_BLOCK * 512 + 700])("is refused by tapdisk: %i bytes", async (length) => {
    const path = join(temporaryDirectory(), "disk.vhd");
    writeFileSync(path, good.subarray(0, length));
    const { stderr } = await refused(`vhd:${path}`);
    expect(stderr.startsWith(`tapdisk: ${path}: `)).toBe(true);
    expect(stderr).toMatch(/: found .+, expected .+\n$/);
    expect(readFileSync(path)).toEqual(good.subarray(0, length));
  });
});

describe("a fixed disk", () => {
  const fixed = fixedImage(disk);

  test("that is larger than its file is refused", () => {
    const file = damaged((copy) => {
      const footer = copy.subarray(SIZE);
      footer.writeBigUInt64BE(BigInt(SIZE + 512), 48);
      sealFooter(footer);
    }, fixed);
    const outcome = openWithEngine(file);
    const complaint = { structure: "footer", offset: SIZE + 48, found: String(SIZE + 512) };
    expectComplaint("error" in outcome ? outcome.error : "it was opened", PATH, complaint);
  });

  test.each(Object.entries(footerFields))("has only one footer, which must be good: %s", (_name, field) => {
    expect(openWithEngine(flipped(fixed, SIZE, field))).toMatchObject({
      error: expect.stringMatching(/: footer: .+ at offset \d+ .+: found .+, expected .+$/),
    });
  });
});

test.each([
  ["empty", Buffer.alloc(0)],
  ["zeros", Buffer.alloc(1 << 20)],
  ["text", Buffer.from("not a disk\n".repeat(100))],
])("a file that is no VHD at all is refused: %s", async (_name, file) => {
  const path = join(temporaryDirectory(), "disk.vhd");
  writeFileSync(path, file);
  const { stderr } = await refused(`vhd:${path}`);
  expect(stderr).toMatch(/^tapdisk: \S+disk\.vhd: (file|footer): [^\n]+: found [^\n]+, expected [^\n]+\n$/);
  expect(readFileSync(path)).toEqual(file);
});
