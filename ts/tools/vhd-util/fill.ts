import { constants } from "node:os";
import { CHUNK_SECTORS, type DiskIo } from "../../host/disk-io.ts";
import { UsageError } from "../cli/failure.ts";
import { parseNumber } from "../cli/getopt.ts";
import { print } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { announcing } from "./failing.ts";
import { type BlockTable, blockTable, UNUSED } from "./image.ts";
import { flag, help, name, valued } from "./options.ts";

const { EINVAL } = constants.errno;
const SECTOR = 512;

/** `vhd-util fill`. */
export const fill = suiteCommand("vhd-util", {
  name: "fill",
  summary: "Allocates all blocks of an image, so that later writes need no new space.",
  usage:
    "options: <-n name> [-h help] [-b initialise the BAT and bitmaps, don't write to the data blocks (much faster)] " +
    "[-f start intialisation from this sector, only usable with -b] " +
    "[-t intialise up to this sector (inclusive), only usable with -b] [-B ignore the 2 TB limit, only usable with -b]",
  helpStatus: EINVAL,
  options: {
    name,
    blocks: flag("b", "allocate blocks only, without writing all of their data"),
    from: valued("f", "sector", "with -b: from the block of this sector on"),
    to: valued("t", "sector", "with -b: up to the block of this sector"),
    large: flag("B", "with -b: taken; there are no blocks behind 2 TiB in any file"),
    h: help,
  },
  manual: { examples: [{ text: "Reserve space", command: "vhd-util fill -b -n disk.vhd" }] },
  async run({ options, operands }, jobs) {
    const { name: path } = options;
    if (path === undefined || operands.length > 0) throw new UsageError("-n is missing");
    const onlyBlocks = options.blocks === true;
    if ((options.from !== undefined || options.to !== undefined) && !onlyBlocks) {
      print("-f/-t can only be used with -b");
      throw new UsageError("-b is missing");
    }
    if (options.large && !onlyBlocks) {
      print("-B can only be used with -b");
      throw new UsageError("-b is missing");
    }
    const from = options.from === undefined ? 0 : parseNumber(options.from, "-f");
    const to = options.to === undefined ? Number.MAX_SAFE_INTEGER : parseNumber(options.to, "-t");
    if (to < from) {
      print(`invalid sector range ${from}-${to}`);
      throw new UsageError("it ends before it begins");
    }
    const table = await announcing(
      (errno) => `error opening ${path}: ${errno}`,
      () => blockTable(jobs, path),
    );
    await jobs.withDisk({ path, driver: "vhd", access: "write" }, async (io) => {
      if (onlyBlocks) await allocate(io, table, from, to);
      else await rewrite(io);
    });
    return 0;
  },
});

/** Writes the first sector of each block in the range that isn't allocated, as it is. */
async function allocate(io: DiskIo, table: BlockTable, from: number, to: number): Promise<void> {
  const { sectorsPerBlock, entries } = table;
  const [first, last] = [Math.floor(from / sectorsPerBlock), Math.floor(to / sectorsPerBlock)];
  for (const [block, entry] of entries.entries()) {
    if (block < first || block > last || entry !== UNUSED) continue;
    await writeBack(io, block * sectorsPerBlock, 1);
  }
  await io.flushWrites();
}

/** Writes everything back as it is read. */
async function rewrite(io: DiskIo): Promise<void> {
  for (let sector = 0; sector < io.disk.sectors; sector += CHUNK_SECTORS) {
    await writeBack(io, sector, Math.min(CHUNK_SECTORS, io.disk.sectors - sector));
  }
  await io.flushWrites();
}

async function writeBack(io: DiskIo, sector: number, sectors: number): Promise<void> {
  const data = Buffer.alloc(sectors * SECTOR);
  await io.read(sector, sectors, (bytes) => data.set(bytes));
  io.put(sector, data, false);
}
