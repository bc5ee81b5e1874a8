/** `tapdisk serve` as its users meet it: what it prints, serves, refuses and leaves behind. */

import { existsSync, readdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { connect } from "node:net";
import { constants } from "node:os";
import { dirname, join } from "node:path";
import { describe, expect, it } from "vitest";
import { expectSame, MIB, pattern } from "./support/data.ts";
import { command, NbdClient } from "./support/raw-nbd-client.ts";
import { outcomeOf, RunningProgram, run, temporaryDirectory, until } from "./support/run.ts";
import { backends, refused, ringClient, serve, whileServed } from "./support/tapdisk.ts";

const { errno } = constants;
const tapdisk = join(import.meta.dirname, "../build/bin/tapdisk");

/** A new dynamic disk of 64 MiB by qemu-img; yields its path. */
async function newDisk(type: "dynamic" | "fixed" = "dynamic"): Promise<string> {
  const path = join(temporaryDirectory(), "disk.vhd");
  await run("qemu-img", ["create", "-q", "-f", "vpc", "-o", `subformat=${type},force_size=on`, path, "64M"]);
  return path;
}

async function contentByQemu(disk: string): Promise<Buffer> {
  const raw = `${disk}.raw`;
  await run("qemu-img", ["convert", "-f", "vpc", "-O", "raw", disk, raw]);
  return readFileSync(raw);
}

function endsWithFooter(disk: string): boolean {
  return readFileSync(disk).subarray(-512, -504).toString("latin1") === "conectix";
}

describe.each(backends)("tapdisk serve --io %s", (io) => {
  it("describes the disk to NBD clients", async () => {
    const disk = await newDisk();
    await whileServed(`vhd:${disk}`, ["--io", io], async ({ uri }) => {
      expect(JSON.parse(await run("nbdinfo", ["--json", "--no-content", uri]))).toMatchObject({
        protocol: "newstyle-fixed",
        TLS: false,
        structured: true,
        exports: [
          {
            "export-size": 64 * MIB,
            is_read_only: false,
            can_flush: true,
            can_fua: true,
            can_multi_conn: true,
            can_df: true,
            block_size_minimum: 512,
            block_size_preferred: 4096,
            block_size_maximum: 32 * MIB,
          },
        ],
      });
      const list = JSON.parse(await run("nbdinfo", ["--list", "--json", "--no-content", uri]));
      expect(list).toMatchObject({ exports: [{ "export-name": "disk.vhd" }] });
    });
  });

  it.each(["dynamic", "fixed"] as const)("keeps what nbdcopy writes to a %s disk", async (type) => {
    const disk = await newDisk(type);
    const data = pattern(64 * MIB, 1);
    data.fill(0, 10 * MIB, 20 * MIB);
    const source = join(dirname(disk), "data");
    writeFileSync(source, data);
    await whileServed(`vhd:${disk}`, ["--io", io], async ({ uri }) => {
      await run("nbdcopy", ["--connections=4", "--requests=16", "--flush", source, uri]);
      await run("nbdcopy", [uri, `${source}.same`]);
      expectSame(readFileSync(`${source}.same`), data, "read back at once");
    });
    expect(endsWithFooter(disk)).toBe(true);
    expectSame(await contentByQemu(disk), data, "read by qemu-img");
    await whileServed(`vhd:${disk}`, ["--io", io, "--read-only", "--direct"], async ({ uri }) => {
      await run("nbdcopy", ["--connections=4", uri, `${source}.back`]);
    });
    expectSame(readFileSync(`${source}.back`), data, "read after a restart");
  });

  it("finishes what is in flight when it is told to stop", async () => {
    const disk = await newDisk();
    const server = await serve(`vhd:${disk}`, "--io", io);
    const fio = new RunningProgram("fio", [
      ...["--name=load", "--ioengine=nbd", `--uri=${server.uri}`, "--rw=randwrite", "--bs=16k", "--iodepth=32"],
      ...["--time_based", "--runtime=60"],
    ]);
    await until("blocks are written", () => statSync(disk).size > 20 * MIB);
    await server.stop();
    await fio.outcome(20);
    expect(endsWithFooter(disk)).toBe(true);
    expect(existsSync(server.socket)).toBe(false);
  });

  it("serves rings and NBD at the same time", async () => {
    const disk = await newDisk();
    const socket = join(dirname(disk), "ring");
    const nbd = join(dirname(disk), "nbd");
    await whileServed(
      `vhd:${disk}`,
      ["--io", io, "--ring", `unix:${socket}`, "--nbd", `unix:${nbd}`],
      async ({ uri }) => {
        await run(ringClient, ["verify", "--socket", socket, "--requests", "3000"]);
        await run("nbdinfo", ["--size", uri]);
        // The first client has gone, so there is room for the next.
        await run(ringClient, ["verify", "--socket", socket, "--requests", "3000", "--seed", "2"]);
      },
    );
    expect([socket, nbd].some((path) => existsSync(path))).toBe(false);
  });

  it("serves a raw image with the aio driver", async () => {
    const path = join(temporaryDirectory(), "raw");
    const data = pattern(3 * MIB, 2);
    writeFileSync(path, data);
    await whileServed(`aio:${path}`, ["--io", io], async ({ uri }) => {
      await run("nbdcopy", [uri, `${path}.copy`]);
      await run("qemu-io", ["-f", "raw", "-c", "write -P 0x5a 1M 512", uri]);
    });
    expectSame(readFileSync(`${path}.copy`), data, "copy");
    data.fill(0x5a, MIB, MIB + 512);
    expectSame(readFileSync(path), data, "file");
  });

  it.each([false, true])("answers requests that can't be served with errors (structured: %s)", async (structured) => {
    const size = 64 * MIB;
    const block = pattern(512, 4);
    const disk = await newDisk();
    await whileServed(`vhd:${disk}`, ["--io", io], async ({ socket }) => {
      const client = await NbdClient.connect(socket, structured);
      expect(client.size).toBe(size);
      expect(await client.read(size, 512)).toBe(errno.EINVAL);
      expect(await client.read(size - 512, 1024)).toBe(errno.EINVAL);
      expect(await client.read(2 ** 53, 512)).toBe(errno.EINVAL);
      expect(await client.read(0, 100)).toBe(errno.EINVAL);
      expect(await client.read(0, 33 * MIB)).toBe(errno.EINVAL);
      expect(await client.write(size, block)).toBe(errno.ENOSPC);
      expect(await client.write(size - 512, Buffer.concat([block, block]))).toBe(errno.ENOSPC);
      expect(await client.write(100, block)).toBe(errno.EINVAL);
      expect(await client.request({ command: 77, offset: 0, length: 512 })).toBe(errno.EINVAL);
      expect(await client.request({ command: command.trim, offset: size, length: 512 })).toBe(errno.EINVAL);
      expect(await client.request({ command: command.flush, flags: 1 << 9, offset: 0, length: 0 })).toBe(errno.EINVAL);

      expect(await client.write(size - 512, block)).toBe(0);
      expect(await client.request({ command: command.flush, offset: 0, length: 0 })).toBe(0);
      expect(await client.read(size - 512, 512)).toEqual(block);
      await client.disconnect();
    });
  });

  it("serves requests that came together with the choice of the export", async () => {
    const disk = await newDisk();
    await whileServed(`vhd:${disk}`, ["--io", io], async ({ socket }) => {
      const data = pattern(100_352, 5);
      const client = await NbdClient.connect(socket, true, [
        { command: command.write, offset: MIB, length: data.length, data },
        { command: command.write, offset: 3 * MIB, length: 512, data: data.subarray(0, 512) },
      ]);
      expect(await client.early()).toEqual([0, 0]);
      expect(await client.read(MIB, data.length)).toEqual(data);
      expect(await client.read(3 * MIB, 512)).toEqual(data.subarray(0, 512));
      await client.disconnect();
    });
  });
});

describe("tapdisk serve", () => {
  it("refuses a second opener for writing", async () => {
    const disk = await newDisk();
    await whileServed(`vhd:${disk}`, [], async () => {
      const { stderr } = await refused(`vhd:${disk}`);
      expect(stderr).toMatch(/^tapdisk: .*disk\.vhd .*in use.*\n$/);
    });
    await whileServed(`vhd:${disk}`, [], async () => {});
  });

  it("serves a disk to several readers", async () => {
    const disk = await newDisk();
    await whileServed(`vhd:${disk}`, ["--read-only"], (one) =>
      whileServed(`vhd:${disk}`, ["--read-only"], async (other) => {
        for (const { uri } of [one, other]) await run("nbdinfo", ["--size", uri]);
        await refused(`vhd:${disk}`);
      }),
    );
  });

  it("writes nothing when read-only", async () => {
    const disk = await newDisk();
    const before = readFileSync(disk);
    await whileServed(`vhd:${disk}`, ["--read-only"], async ({ uri }) => {
      await run("nbdinfo", ["--is", "readonly", uri]);
      const write = await outcomeOf("qemu-io", ["-f", "raw", "-c", "write 0 4k", uri]);
      expect(write.status).not.toBe(0);
      await run("qemu-io", ["-r", "-f", "raw", "-c", "read -P 0 0 4k", uri]);
    });
    expectSame(readFileSync(disk), before, "file");
  });

  it("serves on TCP, on a port of its choice too", async () => {
    const disk = await newDisk();
    await whileServed(`vhd:${disk}`, ["--nbd", "tcp:127.0.0.1:0"], async ({ uri }) => {
      expect(uri).toMatch(/^nbd:\/\/127\.0\.0\.1:\d+$/);
      await run("qemu-io", ["-f", "raw", "-c", "write -P 9 0 1M", "-c", "read -P 9 0 1M", uri]);
    });
  });

  it("shows what one connection flushed on all others", async () => {
    const disk = await newDisk();
    await whileServed(`vhd:${disk}`, [], async ({ uri }) => {
      const fio = ["--name=many", "--ioengine=nbd", `--uri=${uri}`, "--rw=randwrite", "--bs=4k", "--iodepth=8"];
      await run("fio", [
        ...fio,
        "--numjobs=16",
        "--size=4M",
        "--offset_increment=4M",
        "--verify=crc32c",
        "--verify_state_save=0",
      ]);
    });
  });

  it("listens in a folder of its own, and leaves nothing behind", async () => {
    const disk = await newDisk();
    const server = await serve(`vhd:${disk}`);
    const folder = dirname(server.socket);
    expect(statSync(folder).mode & 0o777).toBe(0o700);
    await server.stop();
    expect(existsSync(folder)).toBe(false);
  });

  it("replaces a socket that a killed server left, but not one in use, nor a file", async () => {
    const disk = await newDisk();
    const socket = join(dirname(disk), "nbd");
    const address = ["--nbd", `unix:${socket}`];
    await (await serve(`vhd:${disk}`, ...address)).kill();
    expect(existsSync(socket)).toBe(true);
    await whileServed(`vhd:${disk}`, address, async () => {
      const { stderr } = await refused(`vhd:${await newDisk()}`, ...address);
      expect(stderr).toBe(`tapdisk: can't listen on unix:${socket}: another program listens there\n`);
    });
    expect(existsSync(socket)).toBe(false);
    writeFileSync(socket, "precious");
    expect((await refused(`vhd:${disk}`, ...address)).stderr).toMatch(/no socket/);
    expect(readFileSync(socket, "utf8")).toBe("precious");
  });

  it("stops on SIGINT, and lets further signals not disturb it", async () => {
    const disk = await newDisk();
    const server = await serve(`vhd:${disk}`);
    await run("qemu-io", ["-f", "raw", "-c", "write -P 3 0 8M", server.uri]);
    server.program.signal("SIGINT");
    server.program.signal("SIGINT");
    await server.stop();
    expect(endsWithFooter(disk)).toBe(true);
  });

  it("stops while clients are connected that do nothing, or talk nonsense", async () => {
    const disk = await newDisk();
    const ring = join(dirname(disk), "ring");
    const nbd = join(dirname(disk), "nbd");
    const server = await serve(`vhd:${disk}`, "--ring", `unix:${ring}`, "--nbd", `unix:${nbd}`);
    const clients = [nbd, ring].flatMap((path) =>
      ["", "x", "GET / HTTP/1.1\r\n\r\n", "\0".repeat(5000)].map((text) => {
        const client = connect(path);
        client.on("error", () => {});
        client.write(text);
        return client;
      }),
    );
    await until("they are connected", () => clients.every((client) => !client.connecting));
    await run("nbdinfo", ["--size", server.uri]);
    await server.stop();
    for (const client of clients) client.destroy();
  });

  it("keeps a second client waiting for none of a slow one's sake", async () => {
    const disk = await newDisk();
    await whileServed(`vhd:${disk}`, [], async (server) => {
      const slow = connect(server.socket);
      await until("it is connected", () => !slow.connecting);
      const started = performance.now();
      await run("nbdinfo", ["--size", server.uri]);
      expect(performance.now() - started).toBeLessThan(5000);
      slow.destroy();
    });
  });

  describe("refuses", () => {
    it.each<[string, (path: string) => void, RegExp]>([
      ["a file that isn't there", (path) => rmSync(path), /disk\.vhd.*No such file/],
      ["an empty file", (path) => truncateSync(path), /disk\.vhd.*too small/],
      ["a file that is no VHD", (path) => writeFileSync(path, pattern(MIB, 3)), /disk\.vhd.*footer.*expected/],
    ])("%s", async (_what, spoil, message) => {
      const disk = await newDisk();
      spoil(disk);
      const before = existsSync(disk) ? readFileSync(disk) : undefined;
      const { stderr } = await refused(`vhd:${disk}`);
      expect(stderr).toMatch(/^tapdisk: .*\n$/);
      expect(stderr).toMatch(message);
      if (before !== undefined) expectSame(readFileSync(disk), before, "file");
    });

    it("a folder", async () => {
      expect((await refused(`vhd:${temporaryDirectory()}`)).stderr).toMatch(/^tapdisk: .*is a directory.*\n$/i);
    });

    it("a place for its socket that isn't there, and leaves the disk alone", async () => {
      const disk = await newDisk();
      const before = readFileSync(disk);
      const { stderr } = await refused(`vhd:${disk}`, "--nbd", `unix:${dirname(disk)}/missing/sock`);
      expect(stderr).toMatch(/^tapdisk: can't listen on unix:.*missing\/sock/);
      expectSame(readFileSync(disk), before, "file");
      expect(readdirSync(dirname(disk))).toEqual(["disk.vhd"]);
    });

    it.each([
      [["serve"], /missing required argument 'disk'/],
      [["serve", "/no/driver"], /disk: '\/no\/driver' has no driver: expected DRIVER:PATH/],
      [["serve", "qcow:/x"], /unknown driver 'qcow'/],
      [["serve", "vhd:/x", "--nbd", "nonsense"], /--nbd: 'nonsense' is no address/],
      [["serve", "vhd:/x", "--ring", "tcp:h:1"], /--ring: 'tcp:h:1' is no Unix socket/],
      [["serve", "vhd:/x", "--io", "magic"], /Allowed choices are auto, uring, threads/],
      [["serve", "vhd:/x", "--bitmap-cache", "0"], /--bitmap-cache: expected a whole number from 1 to 2047/],
      [["serve", "vhd:/x", "--poll-us", "1e3"], /--poll-us: expected a whole number/],
      [["serve", "vhd:/x", "--unknown"], /unknown option '--unknown'/],
      [["serve", "vhd:/x", "vhd:/y", "--nbd", "unix:/z"], /--nbd: expected as many addresses as disks \(2\), or none/],
      [
        ["serve", "vhd:/x", "--ring", "unix:/y", "--ring", "unix:/z"],
        /--ring: expected as many addresses as disks \(1\)/,
      ],
    ])("the command line %j", async (args, message) => {
      const { status, stdout, stderr } = await outcomeOf(tapdisk, args);
      expect({ status, stdout }).toEqual({ status: 2, stdout: "" });
      expect(stderr).toMatch(/^tapdisk: /);
      expect(stderr).toMatch(message);
    });
  });

  it("explains itself", async () => {
    expect(await run(tapdisk, ["serve", "--help"])).toMatch(/Usage: tapdisk serve \[options\] <disk\.\.\.>/);
  });
});
