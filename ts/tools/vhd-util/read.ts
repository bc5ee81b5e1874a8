import { constants } from "node:os";
import { errnoValue, explain, UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import type { Jobs } from "../cli/jobs.ts";
import { print, say } from "../cli/output.ts";
import { writeOut } from "../cli/raw-output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { allHeaderLines, formatNumber, invalidHeaderLines } from "./headers.ts";
import {
  type BlockTable,
  blockTable,
  describeImage,
  type ImageDescription,
  isSet,
  MAX_BITMAPS,
  UNUSED,
} from "./image.ts";
import { flag, help, json, name, valued } from "./options.ts";

const { EINVAL, ERANGE } = constants.errno;
const SECTOR = 512;

const USAGE = `options:
-h          help
-n          name
-p          print VHD headers
-t sec      translate logical sector to VHD location
-b blk      print bat entry
-B          print entire bat as a bitmap
-m blk      print bitmap
-i sec      test bitmap for logical sector
-e sec      output extent list of allocated logical sectors
-a          print batmap
-j blk      test batmap for block
-d blk      print data
-c num      num units
-r sec      read num sectors at sec
-R byte     read num bytes at byte
-x          print in hex`;

/** What is read, and how it is printed. */
class Reader {
  readonly #jobs: Jobs;
  readonly #path: string;
  readonly #image: ImageDescription;
  readonly #hex: boolean;
  readonly #count: number;

  constructor(jobs: Jobs, path: string, image: ImageDescription, hex: boolean, count: number) {
    this.#jobs = jobs;
    this.#path = path;
    this.#image = image;
    this.#hex = hex;
    this.#count = count;
  }

  #number(value: number | bigint): string {
    return formatNumber(value, this.#hex);
  }

  /** Where sectors are in the file. */
  async translate(sector: number): Promise<number> {
    if (!this.#hasSectors(sector)) {
      say(`sector ${this.#number(sector + this.#count)} past end of file`);
      return ERANGE;
    }
    const table = await blockTable(this.#jobs, this.#path);
    for (let at = sector; at < sector + this.#count; at++) {
      const [block, first] = [Math.floor(at / table.sectorsPerBlock), at % table.sectorsPerBlock];
      const entry = table.entries[block] ?? UNUSED;
      const offset = (entry + table.bitmapSectors + first) * SECTOR;
      const place = entry === UNUSED ? "not allocated" : this.#number(offset);
      print(
        `logical sector ${this.#number(at)}: block number: ${this.#number(block)}, ` +
          `sector offset: ${this.#number(first)}, file offset: ${place}`,
      );
    }
    return 0;
  }

  /** BAT entries. */
  async bat(block: number): Promise<number> {
    if (!this.#hasBlocks(block)) return ERANGE;
    const table = await blockTable(this.#jobs, this.#path);
    for (let at = block; at < block + Math.min(this.#count, table.blocks); at++) {
      const entry = table.entries[at] ?? UNUSED;
      const offset = entry === UNUSED ? "not allocated" : this.#number(entry * SECTOR);
      print(`block: ${this.#number(at)}: offset: ${offset}`);
    }
    return 0;
  }

  /** One bit for each block, set where it is allocated. */
  async batBitmap(): Promise<number> {
    const { entries } = await blockTable(this.#jobs, this.#path);
    const bits = Buffer.alloc(Math.ceil(entries.length / 8));
    entries.forEach((entry, block) => {
      if (entry !== UNUSED) bits[block >> 3] = (bits[block >> 3] ?? 0) | (0x80 >> (block & 7));
    });
    writeOut(bits);
    return 0;
  }

  /** The bitmaps of blocks, as they are in the file. */
  async bitmaps(block: number): Promise<number> {
    if (!this.#hasBlocks(block)) return ERANGE;
    await this.#eachBlock(block, this.#count, (at, bitmap) => {
      if (bitmap === undefined) print(`block ${this.#number(at)} not allocated`);
      else writeOut(bitmap);
    });
    return 0;
  }

  /** The bits of sectors. */
  async testBits(sector: number): Promise<number> {
    return await this.#eachBit(sector, (_, block, bit, first) => {
      print(`block ${this.#number(block)}: sec: ${this.#number(first)}: ${bit ? 1 : 0}`);
    });
  }

  /** Runs of sectors whose bits are set. */
  async extents(sector: number): Promise<number> {
    let start = 0;
    let length = 0;
    const flush = () => {
      if (length > 0) print(`${this.#number(start)} ${this.#number(length)}`);
      length = 0;
    };
    const status = await this.#eachBit(sector, (at, _, bit) => {
      if (bit && length === 0) start = at;
      if (bit) length += 1;
      else flush();
    });
    flush();
    return status;
  }

  /** The batmap, as it is in the file. */
  batmap(): number {
    const { batmap } = this.#image;
    if (batmap === null || batmap.map === null || batmap.problem !== null) {
      print(`failed to read batmap: -${batmap?.problem?.errno ?? EINVAL}`);
      return batmap?.problem?.errno ?? EINVAL;
    }
    writeOut(Buffer.from(batmap.map, "hex"));
    return 0;
  }

  /** What the batmap says of blocks. */
  testBatmap(block: number): number {
    if (!this.#hasBlocks(block)) return ERANGE;
    const { batmap } = this.#image;
    if (batmap === null || batmap.map === null || batmap.problem !== null) {
      say("failed to get batmap");
      return batmap?.problem?.errno ?? EINVAL;
    }
    const map = Buffer.from(batmap.map, "hex");
    for (let at = block; at < block + this.#count; at++) {
      // The original says this on standard error.
      say(`batmap for block ${this.#number(at)}: ${isSet(map, at) ? 1 : 0}`);
    }
    return 0;
  }

  /** The data of blocks as they are in this file, whatever the bitmaps say. */
  async blockData(block: number): Promise<number> {
    if (!this.#hasBlocks(block)) return ERANGE;
    const table = await blockTable(this.#jobs, this.#path);
    return await this.#jobs.withDisk({ driver: "aio", path: this.#path, access: "inspect" }, async (io) => {
      for (let at = block; at < block + this.#count; at++) {
        const entry = table.entries[at] ?? UNUSED;
        if (entry === UNUSED) print(`block ${this.#number(at)} not allocated`);
        else await io.read(entry + table.bitmapSectors, table.sectorsPerBlock, writeOut);
      }
      return 0;
    });
  }

  /** What a guest reads. */
  async bytes(start: number, length: number): Promise<number> {
    if (BigInt(start) + BigInt(length) > this.#image.size) return ERANGE;
    const first = Math.floor(start / SECTOR);
    const sectors = Math.ceil((start + length) / SECTOR) - first;
    let skip = start - first * SECTOR;
    let left = length;
    return await this.#jobs.withDisk({ driver: "vhd", path: this.#path, access: "inspect" }, async (io) => {
      await io.read(first, sectors, (bytes) => {
        const part = bytes.subarray(skip, skip + left);
        writeOut(part);
        left -= part.length;
        skip = 0;
      });
      return 0;
    });
  }

  /** Whether the disk has all the sectors from this one on. */
  #hasSectors(sector: number): boolean {
    return (BigInt(sector) + BigInt(this.#count)) * BigInt(SECTOR) <= this.#image.size;
  }

  /** Whether there is room in the BAT for all the blocks from this one on; says so if not. */
  #hasBlocks(block: number): boolean {
    const end = block + this.#count;
    if (end <= (this.#image.header?.maxTableEntries ?? 0)) return true;
    say(`block ${this.#number(end)} past end of file`);
    return false;
  }

  async #eachBlock(
    first: number,
    count: number,
    take: (block: number, bitmap: Uint8Array | undefined, table: BlockTable) => void,
  ): Promise<void> {
    for (let start = first; start < first + count; start += MAX_BITMAPS) {
      const part = Math.min(MAX_BITMAPS, first + count - start);
      const table = await blockTable(this.#jobs, this.#path, { block: start, count: part, bitmaps: true });
      for (let index = 0; index < part; index++) {
        const bitmap = (table.entries[index] ?? UNUSED) === UNUSED ? undefined : table.bitmaps[index];
        take(start + index, bitmap, table);
      }
    }
  }

  async #eachBit(
    sector: number,
    take: (sector: number, block: number, bit: boolean, first: number) => void,
  ): Promise<number> {
    if (!this.#hasSectors(sector)) {
      print(`sector ${this.#number(sector)} past end of file`);
      return ERANGE;
    }
    const perBlock = Math.max(1, (this.#image.header?.blockSize ?? 0) / SECTOR);
    const [block, last] = [Math.floor(sector / perBlock), Math.floor((sector + this.#count - 1) / perBlock)];
    await this.#eachBlock(block, last - block + 1, (at, bitmap) => {
      const end = Math.min((at + 1) * perBlock, sector + this.#count);
      for (let current = Math.max(at * perBlock, sector); current < end; current++) {
        const first = current - at * perBlock;
        take(current, at, bitmap !== undefined && isSet(bitmap, first), first);
      }
    });
    return 0;
  }
}

/** JSON of numbers that JavaScript has no exact ones for. */
function exact(_: string, value: unknown): unknown {
  if (typeof value !== "bigint") return value;
  return value <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(value) : value.toString();
}

/** An image to be read. Of one that can't be used, the original prints what there is; yields an errno value then. */
async function openOrDump(jobs: Jobs, path: string, hex: boolean): Promise<ImageDescription | number> {
  const failed = (errno: number, why: string, lines: readonly string[]): number => {
    print(`Failed to open ${path}: -${errno}\n\n${path} appears invalid; dumping headers\n`);
    for (const line of lines) print(line);
    say(`vhd-util read: ${why}`);
    return errno;
  };
  try {
    const image = await describeImage(jobs, path, { batmap: true });
    if (image.problem === null) return image;
    return failed(image.problem.errno, image.problem.message, invalidHeaderLines(image, hex));
  } catch (error) {
    return failed(errnoValue(error), explain(error), []);
  }
}

/** Prints the headers of an image, as `read -p` does. Yields the exit status. */
export async function printHeaders(jobs: Jobs, path: string, hex: boolean): Promise<number> {
  const image = await openOrDump(jobs, path, hex);
  if (typeof image === "number") return image;
  for (const line of allHeaderLines(image, hex)) print(line);
  return 0;
}

/** `vhd-util read`. */
export const read = suiteCommand("vhd-util", {
  name: "read",
  summary: "Prints headers, tables and data of an image.",
  usage: USAGE,
  helpStatus: EINVAL,
  options: {
    name,
    headers: flag("p", "the headers, line by line"),
    translate: valued("t", "sector", "where sectors of the disk are in the file"),
    bat: valued("b", "block", "BAT entries"),
    batBitmap: flag("B", "the BAT as a bitmap, binary"),
    bitmap: valued("m", "block", "bitmaps, binary"),
    testBit: valued("i", "sector", "the bits of sectors"),
    extents: valued("e", "sector", "runs of sectors whose bits are set"),
    batmap: flag("a", "the batmap, binary"),
    testBatmap: valued("j", "block", "what the batmap says of blocks"),
    data: valued("d", "block", "the data of blocks in this file, binary"),
    count: valued("c", "N", "how many sectors, blocks or bytes, 1 by default"),
    sectors: valued("r", "sector", "what a guest reads there, binary"),
    bytes: valued("R", "byte", "what a guest reads there, binary"),
    hex: flag("x", "numbers in hexadecimal digits"),
    cached: flag("C", "by way of the page cache, as is always done here"),
    json,
    h: help,
  },
  manual: {
    examples: [
      { text: "The headers", command: "vhd-util read -p -n disk.vhd" },
      {
        text: "The first 2048 sectors of the disk, through all parents",
        command: "vhd-util read -r 0 -c 2048 -n disk.vhd > start.img",
      },
    ],
  },
  async run({ options, operands }, jobs) {
    const { name: path } = options;
    if (path === undefined || operands.length > 0) throw new UsageError("-n is missing");
    const number = (text: string | undefined) => (text === undefined ? undefined : parseNumber(text, "a number"));
    const count = number(options.count) ?? 1;
    const hex = options.hex === true;
    const image = await openOrDump(jobs, path, hex);
    if (typeof image === "number") return image;
    if (options.json) {
      print(JSON.stringify(image, exact));
      return 0;
    }
    if (options.headers) for (const line of allHeaderLines(image, hex)) print(line);
    const reader = new Reader(jobs, path, image, hex, count);
    const steps: readonly (readonly [string | undefined, (at: number) => Promise<number> | number])[] = [
      [options.translate, (at) => reader.translate(at)],
      [options.bat, (at) => reader.bat(at)],
      [options.batBitmap && "0", () => reader.batBitmap()],
      [options.bitmap, (at) => reader.bitmaps(at)],
      [options.testBit, (at) => reader.testBits(at)],
      [options.extents, (at) => reader.extents(at)],
      [options.batmap && "0", () => reader.batmap()],
      [options.testBatmap, (at) => reader.testBatmap(at)],
      [options.data, (at) => reader.blockData(at)],
      [options.sectors, (at) => reader.bytes(at * SECTOR, count * SECTOR)],
      [options.bytes, (at) => reader.bytes(at, count)],
    ];
    for (const [text, step] of steps) {
      const at = number(text);
      const status = at === undefined ? 0 : await step(at);
      if (status !== 0) return status;
    }
    return 0;
  },
});
