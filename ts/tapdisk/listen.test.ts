import { once } from "node:events";
import { existsSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Worker } from "node:worker_threads";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { formatUri, listen, parseAddress, parseUnixAddress } from "./listen.ts";

describe("parseAddress", () => {
  it.each([
    ["unix:/run/x y.sock", { kind: "unix", path: "/run/x y.sock" }],
    ["tcp:localhost:1234", { kind: "tcp", host: "localhost", port: 1234 }],
    ["tcp:10.0.0.1", { kind: "tcp", host: "10.0.0.1", port: 10809 }],
    ["tcp:[::1]:0", { kind: "tcp", host: "::1", port: 0 }],
    ["tcp:[::]", { kind: "tcp", host: "::", port: 10809 }],
  ])("reads %s", (text, address) => {
    expect(parseAddress(text)).toEqual(address);
  });

  it.each([
    "",
    "unix:",
    "tcp:",
    "tcp::1",
    "tcp:host:",
    "tcp:host:65536",
    "tcp:host:x",
    "tcp:::1:2",
    "udp:x:1",
    "/sock",
  ])("refuses '%s'", (text) => {
    expect(() => parseAddress(text)).toThrow(/is no address/);
  });

  it("refuses Unix paths that the kernel would cut", () => {
    expect(parseAddress(`unix:${"x".repeat(107)}`)).toBeDefined();
    expect(() => parseAddress(`unix:${"x".repeat(108)}`)).toThrow(/107 bytes at most/);
    expect(() => parseUnixAddress("tcp:x:1")).toThrow(/no Unix socket/);
  });
});

describe("formatUri", () => {
  it("writes URIs that clients take", () => {
    expect(formatUri("nbd", { kind: "unix", path: "/a/b c&d" })).toBe("nbd+unix:///?socket=/a/b%20c%26d");
    expect(formatUri("nbd", { kind: "tcp", host: "h", port: 1 })).toBe("nbd://h:1");
    expect(formatUri("nbd", { kind: "tcp", host: "::1", port: 1 })).toBe("nbd://[::1]:1");
  });
});

describe("listen", () => {
  const unexpected = (message: string) => expect.fail(message);
  let folder: string;
  let path: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), "listen-"));
    path = join(folder, "sock");
  });
  afterEach(() => rm(folder, { recursive: true }));

  it("says that a folder is not there", async () => {
    const address = { kind: "unix", path: join(folder, "no", "sock") } as const;
    await expect(listen(createServer(), address, unexpected)).rejects.toThrow(
      /can't listen on unix:\S+sock: ENOENT: no such file/,
    );
  });

  async function expectServed(): Promise<void> {
    const server = createServer((socket) => socket.end());
    await listen(server, { kind: "unix", path }, unexpected);
    const client = connect(path);
    await once(client, "connect");
    client.destroy();
    server.close();
    expect(existsSync(path)).toBe(false);
  }

  it("makes a Unix socket, and closing removes it", () => expectServed());

  it("replaces a socket that nobody listens on", async () => {
    // A thread that ends without closing leaves its socket behind, like a killed program.
    const code = `require("node:net").createServer().listen(${JSON.stringify(path)}, () => {
      require("node:fs").linkSync(${JSON.stringify(path)}, ${JSON.stringify(`${path}.left`)}); process.exit(); })`;
    await once(new Worker(code, { eval: true }), "exit");
    path = `${path}.left`;
    expect(existsSync(path)).toBe(true);
    await expectServed();
  });

  it("leaves a socket alone that is in use", async () => {
    const other = createServer();
    await listen(other, { kind: "unix", path }, unexpected);
    await expect(listen(createServer(), { kind: "unix", path }, unexpected)).rejects.toThrow(
      /another program listens there/,
    );
    expect(existsSync(path)).toBe(true);
    other.close();
  });

  it("leaves a file alone that is no socket", async () => {
    await writeFile(path, "precious");
    await expect(listen(createServer(), { kind: "unix", path }, unexpected)).rejects.toThrow(/no socket/);
    expect(existsSync(path)).toBe(true);
  });

  it("goes on when a client can't be accepted", async () => {
    const warnings: string[] = [];
    const server = createServer();
    await listen(server, { kind: "unix", path }, (message) => warnings.push(message));
    // What Node does when the kernel reports an error of accept.
    server.emit("error", new Error("accept EPROTO"));
    expect(warnings).toEqual([`a client of unix:${path} was lost: accept EPROTO`]);
    server.close();
  });

  it("reports the port that was chosen", async () => {
    const server = createServer();
    const address = await listen(server, { kind: "tcp", host: "127.0.0.1", port: 0 }, unexpected);
    expect(address).toMatchObject({ host: "127.0.0.1", port: expect.any(Number) });
    expect(address.kind === "tcp" && address.port > 0).toBe(true);
    server.close();
  });
});
