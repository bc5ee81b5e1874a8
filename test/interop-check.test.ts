// Our check and the original's on the same files, which the original made and which are then damaged in many ways: both find
// the same files valid, and ours knows what the original says first of the others.

import { readFileSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { describe, expect, test } from "vitest";
import { loadEngineModule } from "../ts/engine/load-node.ts";
import { JobRunner } from "../ts/host/job-runner.ts";
import { portModule } from "../ts/tapdisk/port.ts";
import { checkReportSchema } from "../ts/tools/vhd-check/schema.ts";
import { checkAlone, vhdUtil, writeWithOriginal } from "./support/blktap.ts";
import { scattered } from "./support/chains.ts";
import { MIB, pattern, randomNumbers } from "./support/data.ts";
import { temporaryDirectory } from "./support/run.ts";
import { sealFooter, sealHeader } from "./support/vhd-image.ts";

const SIZE = 20 * MIB;
const HEADER = 512;
const TABLE = 1536;

/** What an option of vhd-util check is called in a job. */
const options = {
  "-i": { ignore: { primaryFooter: true } },
  "-I": { ignore: { parentUuid: true } },
  "-t": { ignore: { timestamps: true } },
  "-B": { ignore: { overlaps: true } },
  "-b": { depth: "data" },
} as const;
type Option = keyof typeof options;

interface Folder {
  readonly base: string;
  readonly child: string;
}

/** A disk and its child, made and written by the original. */
async function makeFolder(): Promise<Folder> {
  const folder = temporaryDirectory();
  const [base, child] = [join(folder, "base.vhd"), join(folder, "child.vhd")];
  await vhdUtil("create", "-n", base, "-s", `${SIZE / MIB}`);
  await writeWithOriginal(base, [{ offset: 2 * MIB, data: pattern(2 * MIB, 1) }, ...scattered(SIZE, 3, 1)]);
  await vhdUtil("snapshot", "-n", child, "-p", base);
  await writeWithOriginal(child, scattered(SIZE, 4, 2));
  return { base, child };
}

/** A file, and with which options it is checked. */
interface Case {
  readonly name: string;
  readonly path: string;
  readonly given: readonly Option[];
}

/** Checkers of the original that run at the same time: it sleeps for ten seconds where it can't read a header. */
const AT_ONCE = 32;

/** What the original says of each. */
async function theirs(cases: readonly Case[]): Promise<Map<Case, string | null>> {
  const waiting = [...cases];
  const said = new Map<Case, string | null>();
  const work = async () => {
    for (let next = waiting.shift(); next !== undefined; next = waiting.shift()) {
      const { status, stdout } = await checkAlone(next.path, next.given);
      const end = stdout.indexOf(`${next.path} appears invalid`);
      said.set(next, status === 0 ? null : stdout.slice(0, end < 0 ? undefined : end).trimEnd());
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  return said;
}

/** Where both don't say the same. */
async function differences(cases: readonly Case[]): Promise<string[]> {
  const said = await theirs(cases);
  const runner = new JobRunner(loadEngineModule(), portModule().Port);
  const now = Math.floor(Date.now() / 1000);
  const wrong: string[] = [];
  for (const one of cases) {
    const { name, path, given } = one;
    const chosen = Object.assign({}, ...given.map((option) => options[option]));
    const report = await runner.run({ job: "check", path, depth: "quick", now, ...chosen });
    const ours = checkReportSchema.parse(report).images[0]?.original ?? null;
    if (ours !== said.get(one)) wrong.push(`${name} ${given.join(" ")}: ours '${ours}', theirs '${said.get(one)}'`);
  }
  runner.close();
  return wrong;
}

function footers(file: Buffer, change: (footer: Buffer) => void): void {
  for (const at of [0, file.length - 512]) {
    const footer = file.subarray(at, at + 512);
    change(footer);
    sealFooter(footer);
  }
}

function header(file: Buffer, change: (header: Buffer) => void): void {
  const bytes = file.subarray(HEADER, HEADER + 1024);
  change(bytes);
  sealHeader(bytes);
}

/** The first block that there is, after `from`. */
function block(file: Buffer, from = 0): number {
  const index = Array.from({ length: SIZE / (2 * MIB) - from }, (_, at) => from + at).find(
    (at) => file.readUInt32BE(TABLE + at * 4) !== 0xffff_ffff,
  );
  if (index === undefined) throw new Error("there is no block");
  return index;
}

const damages: Readonly<Record<string, (file: Buffer) => Buffer | undefined>> = {
  none: () => undefined,
  "no primary footer": (file) => void file.fill(0, file.length - 512),
  "a footer that was cut off": (file) => file.subarray(0, file.length - 512),
  "no backup footer": (file) => void file.fill(0, 0, 512),
  "footers that differ": (file) => {
    const footer = file.subarray(0, 512);
    footer[27] = 9;
    sealFooter(footer);
    return undefined;
  },
  "a short footer": (file) => file.subarray(0, file.length - 1),
  "bytes behind the footer": (file) => Buffer.concat([file, Buffer.alloc(100)]),
  features: (file) => void footers(file, (footer) => footer.writeUInt32BE(7, 8)),
  "a later version of tap": (file) => void footers(file, (footer) => footer.writeUInt32BE(0x10009, 32)),
  "a time in the future": (file) => void footers(file, (footer) => footer.writeUInt32BE(0xf000_0000, 24)),
  "a large geometry": (file) => void footers(file, (footer) => footer.writeUInt32BE(0xffff10ff, 56)),
  "an unknown type": (file) => void footers(file, (footer) => footer.writeUInt32BE(7, 60)),
  "a saved state": (file) => void footers(file, (footer) => footer.writeUInt8(1, 84)),
  "hidden twice": (file) => void footers(file, (footer) => footer.writeUInt8(2, 85)),
  "reserved bytes of the footer": (file) => void footers(file, (footer) => footer.writeUInt8(2, 200)),
  "no UUID": (file) => void footers(file, (footer) => footer.fill(0, 68, 84)),
  "a header nowhere": (file) => void footers(file, (footer) => footer.writeBigUInt64BE(1n << 40n, 16)),
  "no header": (file) => void file.fill(0, HEADER, HEADER + 1024),
  "a header's checksum": (file) => void file.writeUInt8(1, HEADER + 700),
  "a header's version": (file) => void header(file, (it) => it.writeUInt32BE(2, 24)),
  "a header's data offset": (file) => void header(file, (it) => it.writeUInt32BE(2, 8)),
  "a table out of place": (file) => void header(file, (it) => it.writeBigUInt64BE(1537n, 16)),
  "an endless table": (file) => void header(file, (it) => it.writeUInt32BE(0x1000_0000, 28)),
  "a block size": (file) => void header(file, (it) => it.writeUInt32BE(3 << 20, 32)),
  "reserved bytes of the header": (file) => void header(file, (it) => it.writeUInt8(3, 1000)),
  "a parent's time in the future": (file) => void header(file, (it) => it.writeUInt32BE(0xf000_0000, 56)),
  "another parent": (file) => void header(file, (it) => it.writeUInt32BE(77, 40)),
  "a locator of nobody": (file) => void header(file, (it) => it.write("Nope", 576)),
  "a locator twice": (file) => void header(file, (it) => it.copy(it, 600, 576, 600)),
  "a locator without a name": (file) => void header(file, (it) => it.writeUInt32BE(0, 576 + 8)),
  "a locator nowhere": (file) => void header(file, (it) => it.writeBigUInt64BE(0n, 576 + 16)),
  "another name in the header": (file) => void header(file, (it) => it.writeUInt8(0x61, 65)),
  "a block on the header": (file) => void file.writeUInt32BE(1, TABLE + block(file) * 4),
  "a block on the batmap": (file) => void file.writeUInt32BE(4, TABLE + block(file) * 4),
  "a block past the end": (file) => void file.writeUInt32BE(0x12345, TABLE + block(file) * 4),
  "a block twice": (file) =>
    void file.copy(
      file,
      TABLE + block(file, block(file) + 1) * 4,
      TABLE + block(file) * 4,
      TABLE + block(file) * 4 + 4,
    ),
  "blocks that overlap": (file) =>
    void file.writeUInt32BE(file.readUInt32BE(TABLE + block(file) * 4) + 5, TABLE + block(file, block(file) + 1) * 4),
  "no batmap": (file) => void file.fill(0, 2048, 2560),
  "another batmap": (file) => void file.fill(0xff, 2560, 2561),
  "data under a clear bit": (file) => {
    const at = file.readUInt32BE(TABLE + block(file) * 4) * 512;
    file.fill(0, at, at + 512);
    // The original takes a sector for zeros whose first byte is one.
    for (let sector = 1; sector <= 4096; sector++) file[at + sector * 512] = 0;
    return undefined;
  },
};

/** Every damage with these options, and some with others. */
const optionSets: readonly (readonly Option[])[] = [[], ["-i"], ["-I"], ["-t"], ["-B"], ["-b"]];

describe("a check says what the original says of", () => {
  test.each(["base", "child"] as const)("a damaged %s", async (which) => {
    const folder = await makeFolder();
    const good = readFileSync(folder[which]);
    const cases = Object.entries(damages).flatMap(([name, damage], index): Case[] => {
      const file = Buffer.from(good);
      const path = join(dirname(folder.base), `${which}-${index}.vhd`);
      writeFileSync(path, damage(file) ?? file);
      // The original can't read the last block of an image with a short footer around the page cache.
      const sets = name === "a short footer" ? optionSets.filter((given) => !given.includes("-b")) : optionSets;
      return sets.map((given) => ({ name, path, given }));
    });
    expect(await differences(cases)).toEqual([]);
  });

  test("files with random damage in their metadata", async () => {
    const folder = await makeFolder();
    const random = randomNumbers(6);
    const cases = Array.from({ length: 120 }, (_, round): Case => {
      const which = round % 2 === 0 ? "base" : "child";
      const file = readFileSync(folder[which]);
      const damaged = Array.from({ length: 1 + random(3) }, () => {
        const any = random(10) === 0 ? file.length - 512 + random(512) : random(3584);
        // The original converts what is behind the parent's name as well, to the user's character set.
        const at = any >= HEADER + 64 && any < HEADER + 576 ? HEADER : any;
        file.writeUInt8(random(256), at);
        return at;
      });
      if (random(2) === 0) footers(file, () => {});
      if (random(2) === 0) header(file, () => {});
      const path = join(dirname(folder.base), `${which}-${round}.vhd`);
      writeFileSync(path, file);
      return { name: `${which}, bytes ${damaged.join(", ")}`, path, given: ["-b"] };
    });
    expect(await differences(cases)).toEqual([]);
  });
});
