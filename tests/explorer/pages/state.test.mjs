// The state of a page as its address holds it, and the conditions on columns.
import assert from "node:assert/strict";
import { test } from "node:test";
import { makeAddress, parseAddress } from "../../../explorer/pages/address.js";
import { faultOf, holding, parseWhere, writeWhere } from "../../../explorer/pages/where.js";

test("an address is read as it was written", () => {
  const query = { where: "frequency>0.01;name=red & blue?", words: "50 % + more", sort: "-label_entropy" };
  const address = makeAddress(["v", "0123abcd", "latents"], query);
  assert.ok(!/[ <>&?].*[ <>]/.test(address));
  assert.deepEqual(parseAddress(address), { path: ["v", "0123abcd", "latents"], query });
});

test("what is empty is no part of an address", () => {
  assert.equal(makeAddress([], { a: null, b: "", c: undefined }), "#/");
  assert.deepEqual(parseAddress(""), { path: [], query: {} });
  assert.deepEqual(parseAddress("#/tables?x&=y&z=%E0%A4%A"), { path: ["tables"], query: { z: "%E0%A4%A" } });
});

test("conditions are read as they were written, and what is none is left out", () => {
  const text = "frequency<=0.5;dead=false;name!=a=b";
  assert.equal(writeWhere(parseWhere(text)), text);
  assert.deepEqual(parseWhere("nonsense; ;x > 3"), [{ column: "x", op: ">", value: "3" }]);
  assert.match(faultOf("frequency>0.1;nonsense", ["frequency"]), /^nonsense: /);
  assert.match(faultOf("colour=3", ["frequency"]), /^colour: no column/);
  assert.equal(faultOf("frequency>0.1", ["frequency"]), null);
});

test("a null fulfils only the comparison with null", () => {
  const columns = { x: [1, null, 3], flag: [true, false, true], name: ["Red circle", null, "blue"] };
  const rows = (text) => [...holding(parseWhere(text), columns, 3)];
  assert.deepEqual(rows("x>=1"), [1, 0, 1]);
  assert.deepEqual(rows("x=null"), [0, 1, 0]);
  assert.deepEqual(rows("x!=null"), [1, 0, 1]);
  assert.deepEqual(rows("x!=3"), [1, 0, 0]);
  assert.deepEqual(rows("flag=true;x<2"), [1, 0, 0]);
  assert.deepEqual(rows("name~red"), [1, 0, 0]);
  assert.deepEqual(rows("name=red"), [0, 0, 0]);
  assert.deepEqual(rows("name!=blue"), [1, 0, 0]);
  assert.deepEqual(rows(""), [1, 1, 1]);
});
